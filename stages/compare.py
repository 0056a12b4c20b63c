"""Compare experiments as means over their seeds: `python -m stages.compare --help`."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from qnet.errors import UserError
from stages.common import METRICS, Parser, output_file, run_tool
from stages.pairs import Pair, pairs
from stages.stale import changed_since, plain
from stages.unchanged import dotted

LISTED = 3  # parameters listed in a row
SHAPES_FULL_PRECISION = ("data", "augment", "model.name", "model.pretrained", "fp")
DEPENDS = {  # sections, besides the seed, that determine the network of a stage
    "train_fp": SHAPES_FULL_PRECISION,
    "train_weights": (*SHAPES_FULL_PRECISION, "model", "cluster.weights", "weights"),
    "train_activations": (*SHAPES_FULL_PRECISION, "model", "cluster", "weights", "activations"),
}


@dataclass
class Group:
    """Networks that differ only in their seed.

    Attributes:
        subject: which network on which data.
        pair: W/A.
        settings: the parameters that determine them, by dotted name.
        by_seed: top-1 in percent and its loss against full precision, by seed.
        bytes: size of the network.
        on_test: whether the test set chose its epoch, or that of an earlier stage's network.
    """

    subject: str
    pair: Pair
    settings: dict[str, Any]
    bytes: int
    on_test: bool
    by_seed: dict[int, tuple[float, float]] = field(default_factory=dict)

    @property
    def top1(self) -> float:
        """Mean top-1 over seeds."""
        return statistics.mean(top1 for top1, _ in self.by_seed.values())

    @property
    def loss(self) -> float:
        """Mean loss against full precision over seeds."""
        return statistics.mean(loss for _, loss in self.by_seed.values())

    @property
    def spread(self) -> float | None:
        """Standard deviation of top-1 over seeds; None for one seed."""
        if len(self.by_seed) < 2:
            return None
        return statistics.stdev(top1 for top1, _ in self.by_seed.values())


def main() -> None:
    """Print a row for each W/A and setting among the experiments; draw them on request."""
    arguments = _arguments()
    if arguments.commits < 1:
        raise UserError(f"-n is {arguments.commits}; it must be 1 or more")
    groups = groups_of(_experiments(arguments.commits))
    if not groups:
        raise UserError(
            f"-n is {arguments.commits}, and no finished experiment started from so recent a "
            "commit; look further back with a higher -n, or run one with `dvc exp run`"
        )
    settings = _differences(groups)
    _print_tables(groups, settings)
    if arguments.picture is not None:
        from stages.charts import Point, draw_comparison  # matplotlib takes a second to import

        points = [
            Point(group.pair.name, group.top1, group.spread, setting)
            for group, setting in zip(groups, settings, strict=True)
        ]
        if len({group.subject for group in groups}) > 1:
            points = [
                replace(point, setting=f"{group.subject} {point.setting}".rstrip())
                for group, point in zip(groups, points, strict=True)
            ]
        draw_comparison(arguments.picture, points)


def groups_of(experiments: Iterable[Mapping[str, Any]]) -> list[Group]:
    """Group the networks of all experiments, by subject, from the most bits to the fewest.

    Args:
        experiments: each with `params`, the content of params.yaml, and `metrics`, the content of
            each training stage's metrics.json.
    """
    groups: dict[tuple[Pair, str], Group] = {}
    for experiment in experiments:
        tree, metrics = experiment["params"], experiment["metrics"]
        flat, on_test = dict(dotted(tree)), False
        subject = f"{tree['model']['name']} on {tree['data']['name']}"
        for stage, pair in pairs(tree["weights"]["levels"], tree["activations"]["bits"]).items():
            settings = {
                name: value
                for name, value in flat.items()
                if any(f"{name}.".startswith(f"{part}.") for part in DEPENDS[stage])
            }
            key = (pair, json.dumps(plain(settings), sort_keys=True))
            figures = metrics[stage]
            top1 = figures["test"]["top1"]
            on_test = on_test or figures["selected_on"] == "test"
            new = Group(subject, pair, settings, figures["bytes"], on_test)
            group = groups.setdefault(key, new)
            loss = metrics["train_fp"]["test"]["top1"] - top1
            # Of the same network trained at several commits, the first, which is newest, counts.
            group.by_seed.setdefault(tree["seed"], (top1, loss))
    subjects = list(dict.fromkeys(group.subject for group in groups.values()))

    def order(group: Group) -> tuple[int, int, str]:
        pair = group.pair
        return subjects.index(group.subject), -pair.weights * pair.activations, pair.name

    return sorted(groups.values(), key=order)


def _arguments() -> argparse.Namespace:
    parser = Parser(
        prog="python -m stages.compare",
        description="Test top-1 of experiments started from recent commits, as means over seeds.",
    )
    parser.add_argument(
        "-n", "--commits", type=int, default=1, metavar="N",
        help="include experiments started from any of the last N commits "
        "(default 1: the last commit only)",
    )  # fmt: skip
    parser.add_argument(
        "--picture", type=output_file(".png"), metavar="FILE",
        help="also draw accuracy against bits, as PNG",
    )  # fmt: skip
    return parser.parse_args()


def _experiments(commits: int) -> list[dict[str, Any]]:
    """Parameters and metrics of all finished experiments.

    Commits and the workspace are left out: their params.yaml may have changed since the metrics
    were written.
    """
    command = [sys.executable, "-m", "dvc", "exp", "show", "--json", "-n", str(commits)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise UserError(f"`dvc exp show` failed ({reason[0]}); run it to see why")
    finished = [
        experiment
        for commit in json.loads(done.stdout)
        for experiment in commit.get("experiments") or []
        if (experiment.get("executor") or {}).get("state", "success") == "success"
    ]
    revisions = [revision for experiment in finished for revision in experiment.get("revs") or []]
    read = [_read(revision) for revision in revisions]
    ran = [experiment for experiment in read if experiment is not None]
    known = [experiment for experiment in ran if _is_known(experiment)]
    whole = [experiment for experiment in known if not experiment["changed"]]
    _tell_left_out("of another version of this code", len(ran) - len(known))
    _tell_left_out("that ran only some of the stages they change", len(known) - len(whole))
    return whole


def _tell_left_out(which: str, count: int) -> None:
    if count:
        print(f"experiments {which}, left out: {count}", file=sys.stderr)


def _is_known(experiment: Mapping[str, Any]) -> bool:
    """Whether parameters and metrics have the form that the current code expects."""
    try:
        groups_of([experiment])
    except (AttributeError, KeyError, TypeError, UserError, ValueError):
        return False
    return True


def _read(revision: Mapping[str, Any]) -> dict[str, Any] | None:
    """Input for `groups_of`, and what has `changed` since a stage read it; None unless all ran."""
    data = revision.get("data") or {}
    params = (data.get("params") or {}).get("params.yaml", {}).get("data")
    files = data.get("metrics") or {}
    metrics = {
        stage: files.get(str(METRICS / stage / "metrics.json"), {}).get("data") for stage in DEPENDS
    }
    if not params or not all(metrics.values()):
        return None
    lock = _lock(revision["rev"])
    if not lock.get("stages", {}).keys() >= DEPENDS.keys():
        return None
    return {"params": params, "metrics": metrics, "changed": changed_since(lock, params)}


def _lock(revision: str) -> dict[str, Any]:
    """Content of dvc.lock at a commit; DVC commits it with each experiment."""
    command = ["git", "show", f"{revision}:./dvc.lock"]
    text = subprocess.run(command, capture_output=True, text=True).stdout
    return dict(yaml.safe_load(text) or {})


def _differences(groups: list[Group]) -> list[str]:
    """For each group, the parameters that differ among groups of its subject and W/A, such as
    `weights.lr=0.1`."""
    whole, short = [], []
    for group in groups:
        alike = [other.settings for other in groups if _row(other) == _row(group)]
        words = [
            f"{name}={value}"
            for name, value in group.settings.items()
            if any(plain(other.get(name)) != plain(value) for other in alike)
        ]
        more = [f"and {len(words) - LISTED} more"] if len(words) > LISTED else []
        whole.append(" ".join(words))
        short.append(" ".join([*words[:LISTED], *more]))
    rows = Counter(zip(map(_row, groups), short, strict=True))
    return [
        brief if rows[_row(group), brief] == 1 else full  # short rows may look alike
        for group, brief, full in zip(groups, short, whole, strict=True)
    ]


def _row(group: Group) -> tuple[str, Pair]:
    return group.subject, group.pair


def _print_tables(groups: list[Group], settings: list[str]) -> None:
    """Print a table for each subject."""
    rows = list(zip(groups, settings, strict=True))
    for subject in dict.fromkeys(group.subject for group in groups):
        if subject != groups[0].subject:
            print()
        print(f"{subject}, test set")
        _print_table([row for row in rows if row[0].subject == subject])
    if any(group.on_test for group in groups):
        print("* the test set chose the epochs: too high")


def _print_table(rows: list[tuple[Group, str]]) -> None:
    width = max(len("W/A"), *(len(group.pair.name) for group, _ in rows))
    print(f"{'W/A':>{width}} {'top-1 %':>8} {'±':>5} {'seeds':>5} {'loss':>6} {'bytes':>11}")
    for group, setting in rows:
        spread = "" if group.spread is None else f"{group.spread:.2f}"
        mark = "*" if group.on_test else " "
        line = (
            f"{group.pair.name:>{width}} {group.top1:8.2f} {spread:>5} {len(group.by_seed):5} "
            f"{group.loss:6.2f} {group.bytes:11,} {mark} {setting}"
        )
        print(line.rstrip())


if __name__ == "__main__":
    run_tool(main)
