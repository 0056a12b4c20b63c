"""params.yaml is read completely or refused in one line, without any other exception."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from qnet.errors import UserError
from qnet.params import FpParams, Params, QuantizedTrainingParams, load_params

PARAMS = Path(__file__).parents[2] / "params.yaml"
TREE = yaml.load(PARAMS.read_text("utf-8"), yaml.BaseLoader)
Tree = dict[str, Any]
Load = Callable[[str | bytes], Params]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """Return a function that loads the parameters in a text."""
    path = tmp_path_factory.mktemp("params") / "params.yaml"

    def load(content: str | bytes) -> Params:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        try:
            return load_params(path)
        except UserError as error:
            message = str(error)
            assert message.startswith(f"{path}: ")
            assert message.isprintable(), repr(message)
            assert len(message) < 600
            raise UserError(message.replace(str(path), "params.yaml")) from None

    return load


def changed(**values: Any) -> str:
    """Text of params.yaml with some values changed: `fp__lr=1` sets fp.lr; None removes it."""
    tree = copy.deepcopy(TREE)
    for name, value in values.items():
        section, key = at(tree, tuple(name.split("__")))
        if value is None:
            del section[key]
        else:
            section[key] = value
    return yaml.safe_dump(tree, sort_keys=False)


def at(tree: Tree, path: tuple[str, ...]) -> tuple[Tree, str]:
    """The mapping that holds the last name of `path`, and that name."""
    for part in path[:-1]:
        tree = tree[part]
    return tree, path[-1]


def leaves(tree: Tree, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key)


def nodes(tree: Tree, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in tree.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from nodes(value, (*path, key))


def message(load: Load, content: str | bytes) -> str:
    with pytest.raises(UserError) as caught:
        load(content)
    return str(caught.value)


# What is accepted


def test_the_projects_own_file() -> None:
    params = load_params(PARAMS)
    assert params.fp.lr == 0.1
    assert params.weights.levels == 1
    assert params.weights.temperature.end == "none"
    assert params.model.keep == ("first", "last")
    assert params.augment.flip == "auto"
    assert params.weights.nesterov is True
    assert type(params.fp) is FpParams
    assert isinstance(params.weights, QuantizedTrainingParams)
    assert isinstance(params.activations, QuantizedTrainingParams)


def test_params_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        load_params(PARAMS).fp.lr = 1.0


def test_dump_is_the_way_back() -> None:
    params = load_params(PARAMS)
    assert Params.model_validate(params.model_dump()) == params
    assert Params.model_validate(json.loads(params.model_dump_json())) == params


def test_every_name_has_a_place_in_the_schema() -> None:
    assert {*nodes(load_params(PARAMS).model_dump())} == {*nodes(TREE)}


@pytest.mark.parametrize(
    ("name", "written", "read"),
    [
        ("fp__lr", "1e-06", 1e-6),  # as DVC writes it
        ("fp__lr", 1e-6, 1e-6),
        ("fp__epochs", "30.0", 30),
        ("fp__epochs", "010", 10),
        ("fp__epochs", 0, 0),
        ("fp__decay_epochs", [10, "20"], (10, 20)),
        ("fp__nesterov", False, False),
        ("augment__flip", True, True),
        ("augment__pad", 0, 0),
        ("data__channels", 3, 3),
        ("data__size", 32, 32),
        ("weights__levels", "2", 2),
        ("weights__levels", "3pm2", "3pm2"),
        ("weights__levels", [-4, -1, 0, 1, 4], (-4, -1, 0, 1, 4)),
        ("weights__levels", "full", "full"),
        ("activations__bits", "full", "full"),
        ("activations__bits", 8, 8),
        ("weights__backward_temperature", "exact", "exact"),
        ("model__pretrained", "torchvision", "torchvision"),
        ("model__pretrained", "torchvision/IMAGENET1K_V1", "torchvision/IMAGENET1K_V1"),
        ("model__pretrained", "torchvision/mine.pth", "torchvision/mine.pth"),
        ("model__pretrained", "old/resnet20-12fca82f.th", "old/resnet20-12fca82f.th"),
        ("runtime__device", "cuda:1", "cuda:1"),
        ("runtime__threads", 2, 2),
        ("runtime__workers", 0, 0),
        ("runtime__processes", 8, 8),
        ("runtime__processes", "auto", "auto"),
        ("data__name", "imagenet", "imagenet"),
    ],
)
def test_accepted(load: Load, name: str, written: object, read: object) -> None:
    section, key = at(load(changed(**{name: written})).model_dump(), tuple(name.split("__")))
    assert section[key] == read
    assert type(section[key]) is type(read)


@pytest.mark.parametrize("name", ["data__root", "model__pretrained"])
def test_a_path_may_begin_at_home(load: Load, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("HOME", "/home/reader")
    section, key = name.split("__")
    values = getattr(load(changed(**{name: "~/fp.pth"})), section)
    assert getattr(values, key) == "/home/reader/fp.pth"


@pytest.mark.parametrize("none", ["none", "null", "~", ""])
def test_null_is_none(load: Load, none: str) -> None:
    text = PARAMS.read_text("utf-8").replace("end: none", f"end: {none}")
    assert load(text).activations.temperature.end == "none"


def test_byte_order_mark_is_skipped(load: Load) -> None:
    assert load(b"\xef\xbb\xbf" + PARAMS.read_bytes()) == load_params(PARAMS)


def test_a_stage_that_only_evaluates_needs_no_schedule(load: Load) -> None:
    params = load(changed(fp__epochs=0, fp__warmup_epochs=2, fp__schedule="step"))
    assert params.fp.epochs == 0
    params = load(changed(activations__epochs=0, activations__frozen_epochs=2))
    assert params.activations.frozen_epochs == 2


def test_all_epochs_may_be_frozen(load: Load) -> None:
    assert load(changed(activations__frozen_epochs=15)).activations.epochs == 15


# What is refused, and how


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"fp__lr": -1}, "fp.lr is -1; it must be a number from 1e-9 to 1e9"),
        ({"fp__lr": "nan"}, "fp.lr is nan; it must be a number from 1e-9 to 1e9"),
        ({"fp__lr": ""}, "fp.lr is empty; it must be a number from 1e-9 to 1e9"),
        ({"fp__lr": None}, "fp.lr is missing; add it: a number from 1e-9 to 1e9"),
        ({"fp__clip_norm": "1e40"}, "fp.clip_norm is 1e40; it must be a number from 0 to 1e9"),
        ({"weights__backward_temperature": "1e-50"}, "is 1e-50; it must be a number from 1e-9 to"),
        ({"weights__epochs": True}, "weights.epochs is true; it must be a whole number from 0"),
        ({"weights__epochs": "yes"}, "weights.epochs is yes; it must be a whole number from 0"),
        ({"weights__epochs": 2.5}, "weights.epochs is 2.5; it must be a whole number from 0"),
        ({"fp__batch_size": 0}, "fp.batch_size is 0; it must be a whole number from 1"),
        ({"data__validation": 1}, "data.validation is 1; it must be a number above 0 and below 1"),
        ({"data__channels": 2}, "data.channels is 2; it must be 1, 3 or auto"),
        ({"data__bad_images": -1}, "data.bad_images is -1; it must be a whole number from 0"),
        ({"runtime__save_every": 0}, "runtime.save_every is 0; it must be a whole number from 1"),
        ({"runtime__workers": "many"}, "runtime.workers is many; it must be a whole number from 0"),
        ({"runtime__processes": 0}, "runtime.processes is 0; it must be a whole number from 1"),
        ({"data__size": 3}, "data.size is 3; it must be a whole number from 4 to 4096, or auto"),
        ({"data__root": "a\nb"}, r"data.root is 'a\nb'; it must be text on one line"),
        ({"augment__flip": "maybe"}, "augment.flip is maybe; it must be true, false or auto"),
        ({"fp__momentum": 1}, "fp.momentum is 1; it must be a number from 0 to below 1"),
        ({"cluster__weights__gamma": 0.5}, "cluster.weights.gamma is 0.5; it must be"),
        ({"fp__decay_epochs": [9, 5]}, "fp.decay_epochs is [9, 5]; it must be a list of incr"),
        ({"model__keep": "first"}, "model.keep is first; it must be a list of layer names"),
        ({"model__pretrained": "torch"}, "model.pretrained is torch; it must be none, torchvision"),
        ({"model__pretrained": "torchvision/"}, "such as torchvision/IMAGENET1K_V1, or a file"),
        ({"model__pretrained": "a.ckpt"}, "or a file (.safetensors, .pth, .pt or .th)"),
        ({"activations__bits": 9}, "activations.bits is 9; it must be a whole number from 1 to 8"),
        ({"weights__levels": 9}, "weights.levels is 9; it must be 1, 2 ... 8 (bits), 3pm2"),
        ({"weights__levels": [1, 0]}, "weights.levels is [1, 0]; it must be"),
        ({"weights__temperature__end": 0}, "weights.temperature.end is 0; it must be a number"),
        ({"weights__distillation": 1.5}, "weights.distillation is 1.5; it must be a number from"),
        ({"runtime__device": "gpu"}, "runtime.device is gpu; it must be auto, cpu, mps, cuda"),
        ({"data__name": "cifar-10"}, "or imagenet; did you mean cifar10?"),
        ({"fp__optimizer": "SGD"}, "or adam; did you mean sgd?"),
        ({"fp": ""}, "fp is empty; it must be a section with epochs, batch_size,"),
        ({"fp": [1]}, "fp is [1]; it must be a section with epochs, batch_size,"),
        ({"fp": None}, "fp is missing; add it: a section with epochs, batch_size,"),
        ({"fp__momentum": 0}, "fp.nesterov is true and momentum is 0; "),
        ({"fp__warmup_epochs": 40}, "fp.warmup_epochs is 40; it must be below epochs (40)"),
        ({"fp__schedule": "step"}, "fp.decay_epochs is []; schedule step needs at least one"),
        (
            {"fp__schedule": "step", "fp__decay_epochs": [9, 40]},
            "fp.decay_epochs ends with 40; it must be below epochs (40)",
        ),
        (
            {"fp__schedule": "step", "fp__decay_epochs": [1, 20]},
            "fp.decay_epochs starts with 1; it must be at least warmup_epochs (2)",
        ),
        (
            {"weights__temperature__end": 5000},
            "weights.temperature.end is 5000; it must be at most cap (2000)",
        ),
        (
            {"activations__frozen_epochs": 16},
            "activations.frozen_epochs is 16; it must be at most epochs (15)",
        ),
        (
            {"activations__frozen_epochs": 1, "activations__weights": "frozen"},
            "activations.frozen_epochs is 1 and weights is frozen, in all epochs; set frozen_ep",
        ),
        ({"weights__level": 1}, "weights.level is not a parameter; did you mean weights.levels?"),
        ({"weights__Levels": 1}, "weights.Levels is not a parameter; did you mean weights.levels?"),
        ({"weights__foo": 1}, "weights.foo is not a parameter; remove it; known are epochs, "),
        ({"fp__lr": 0, "fp__epochs": -1}, "fp.epochs is -1; it must be a whole number from 0"),
    ],
)
def test_refused(load: Load, values: dict[str, Any], words: str) -> None:
    assert words in message(load, changed(**values))


def test_a_misspelt_name_is_one_mistake(load: Load) -> None:
    text = changed(weights__levels=None, weights__level=1)
    assert message(load, text) == (
        "params.yaml: weights.level is not a parameter; did you mean weights.levels?"
    )


def test_a_dotted_name_in_the_file_is_told_where_it_belongs(load: Load) -> None:
    text = changed() + "fp.epochs: 3\n"
    assert message(load, text) == (
        "params.yaml: fp.epochs is not a parameter; write epochs below fp"
    )


def test_several_mistakes_are_counted(load: Load) -> None:
    text = changed(fp__lr=0, data__size=1, runtime__threads=0)
    assert message(load, text) == (
        "params.yaml: data.size is 1; it must be a whole number from 4 to 4096, or auto"
        " (and 2 more)"
    )


def test_long_values_are_cut(load: Load) -> None:
    assert message(load, changed(fp__lr="9" * 5000 + "x")) == (
        f"params.yaml: fp.lr is {'9' * 57}...; it must be a number from 1e-9 to 1e9"
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty; it must be a section with seed, data,"),
        (b"- 1\n", "the file is [1]; it must be a section with seed, data,"),
        (b"seed: 0\nfp:\n  lr: 1\n  lr: 2\n", "line 4 is not valid YAML: 'lr' is given twice; k"),
        (b"fp:\n\tlr: 1\n", "line 2 is not valid YAML: "),
        (b"fp:\n\tlr: 1\n", "; indent with spaces"),
        (b"seed: 0\n<<<<<<< HEAD\n", "line 2 is a merge conflict marker; resolve it"),
        (b"a: 1\nb:\n  c: 1\n  d 2\n  e: 3\n", "lines 4 to 5 are not valid YAML: "),
        (b"a: 1\nb:\n  c:1\n  d: 2\n", "; is each `name: value` here and in the line before in"),
        (b"a: 1\nb: [1\n", "line 3 is not valid YAML: "),
        (b"a: &x [1]\nb: *x\n", "line 2 is not valid YAML: '*x' repeats another value"),
        (b"a: &x [*x]\n", "line 1 is not valid YAML: '*x' repeats another value"),
        (b"a: " + b"[" * 5000, "it is nested too deeply"),
        (b"\x80PNG\xff\x00", "it is not text in UTF-8"),
        (b"a: \x00", "it is not valid YAML: "),
        (b"? [1]\n: 2\n", "line 1 is not valid YAML: "),
        (b"a: 1\n" * 30_000, "it is larger than 100000 bytes"),
    ],
)
def test_unreadable_files(load: Load, content: bytes, words: str) -> None:
    assert words in message(load, content)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml: no such file"):
        load_params(tmp_path / "nowhere.yaml")
    with pytest.raises(UserError, match="it cannot be read: "):
        load_params(tmp_path)


# Whatever the file holds


@given(content=st.binary() | st.text().map(lambda text: text.encode("utf-8", "replace")))
@example(content=b'a: "\\UFFFFFFFF"')
@example(content=b'"\\ud800": "\\ud800"')
@example(content=b"a: !!timestamp x")
@example(content=b"a: 2026-13-45")
@example(content=b"%YAML 9.9\n---\na: 1")
@example(content=b"%YAML 1." + b"9" * 5000 + b"\n---\na: 1")
@example(content=b"seed: " + b"9" * 5000)
@example(content=b"<<: 1")
def test_any_bytes(load: Load, content: bytes) -> None:
    message(load, content)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=100),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(path=st.sampled_from([*nodes(TREE)]), value=anything)
def test_any_value_anywhere(load: Load, path: tuple[str, ...], value: Any) -> None:
    tree = copy.deepcopy(TREE)
    section, key = at(tree, path)
    section[key] = value
    try:
        params = load(yaml.safe_dump(tree))
    except UserError:  # its form is checked in `load`
        return
    assert Params.model_validate(params.model_dump()) == params


@given(path=st.sampled_from([*nodes(TREE)]))
def test_a_deleted_name_is_named(load: Load, path: tuple[str, ...]) -> None:
    tree = copy.deepcopy(TREE)
    section, key = at(tree, path)
    del section[key]
    assert f" {'.'.join(path)} is missing; add it: " in message(load, yaml.safe_dump(tree))


@given(path=st.sampled_from([*nodes(TREE)]), name=st.text())
def test_a_renamed_name_is_named(load: Load, path: tuple[str, ...], name: str) -> None:
    tree = copy.deepcopy(TREE)
    section, key = at(tree, path)
    if name in section:
        return
    section[name] = section.pop(key)
    words = message(load, yaml.safe_dump(tree))
    assert " is not a parameter; " in words
    assert ".".join(path[:-1]) in words


def test_the_last_values_that_are_allowed(load: Load) -> None:
    load(changed(fp__schedule="step", fp__decay_epochs=[2, 39], fp__warmup_epochs=2))
    load(changed(weights__temperature__end=100, weights__temperature__cap=100))
