"""One call quantizes a model as the pipeline's defaults do."""

import copy

import pytest
import torch

import qnet
from qnet.calibration import activation_histograms
from qnet.params import load_params
from tests.pipeline import ROOT
from tests.tiny import network

LAYERS = ("3", "6")  # neither the first nor the last
IMAGES = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.5


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return network(classes=3, channels=1, size=8)


def scales(quantizer: qnet.Quantizer) -> tuple:
    return (
        quantizer.level_set,
        quantizer.alpha.item(),
        quantizer.beta.item(),
        quantizer.thresholds.tolist(),
        quantizer.forward_mode,
        quantizer.backward_temperature,
    )


def test_quantizers_start_as_in_the_pipeline_by_default() -> None:
    found = qnet.quantize_model(model(), [IMAGES], weights=2, activations=3)
    defaults = load_params(ROOT / "params.yaml")
    plain = model()
    seen = activation_histograms(plain, LAYERS, [IMAGES])
    for name in LAYERS:
        layer = found.get_submodule(name)
        for quantizer, values, levels, rule, section in (
            (layer.weight_quantizer, plain.get_submodule(name).weight, qnet.weight_levels(2),
             defaults.cluster.weights, defaults.weights),
            (layer.input_quantizer, seen[name], qnet.activation_levels(3),
             defaults.cluster.activations, defaults.activations),
        ):  # fmt: skip
            clusters = qnet.cluster(values, levels, **rule.model_dump(exclude={"shared"}))
            expected = qnet.Quantizer.from_clusters(
                clusters,
                forward_mode=section.forward,
                backward_temperature=section.backward_temperature,
            )
            assert scales(quantizer) == scales(expected)
    assert len(list(qnet.quantizers(found))) == 2 * len(LAYERS)


def test_an_input_below_zero_gets_levels_on_both_sides() -> None:
    found = qnet.quantize_model(model(), [IMAGES], weights="full", activations=2, keep=["last"])
    quantizers = dict(qnet.quantizers(found))
    assert list(quantizers) == ["0.input_quantizer", "3.input_quantizer", "6.input_quantizer"]
    assert [q.level_set.values[0] for q in quantizers.values()] == [-1, 0, 0]


def test_weights_alone_need_no_images() -> None:
    found = qnet.quantize_model(model(), weights=1, activations="full")
    assert [name for name, _ in qnet.quantizers(found)] == [f"{n}.weight_quantizer" for n in LAYERS]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"weights": 9, "activations": "full"}, "weights.levels 9"),
        ({"weights": 2, "activations": 0}, "activations.bits 0"),
        ({"weights": 2, "activations": 2}, "no images"),
        ({"weights": "full", "activations": "full"}, "both full"),
        ({"weights": 2, "activations": "full", "keep": ["4"]}, "model.keep: '4'"),
    ],
)
def test_a_mistake_leaves_the_model_as_it_was(arguments: dict, named: str) -> None:
    given = model()
    before = copy.deepcopy(given.state_dict())
    with pytest.raises(qnet.UserError, match=named):
        qnet.quantize_model(given, **arguments)
    assert not list(qnet.quantizers(given))
    assert given.state_dict().keys() == before.keys()
