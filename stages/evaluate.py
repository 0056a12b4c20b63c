"""Score a checkpoint and print its confusions: `python -m stages.evaluate --help`."""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qnet.checkpoint import load_checkpoint
from qnet.data import Batches, BatchSource, DatasetInfo
from qnet.data.folder import list_class_folders, load_class_folders
from qnet.data.prepared import SPLITS
from qnet.evaluation import evaluate_classes
from qnet.files import check_writable
from qnet.int8 import to_int8
from qnet.params import Params, load_params
from qnet.runtime import Runtime, start
from stages.bars import bar, counter
from stages.common import PREPARED, Parser, output_file, run_tool, write_json
from stages.data import evaluation_batch, evaluation_images, evaluation_steps, prepared_like, warn

LARGEST_MATRIX = 20  # classes; with more, the matrix is wider than a screen
CONFUSIONS = 10


def main() -> None:
    """Score a checkpoint on the chosen images and print the results."""
    arguments = _arguments()
    params = load_params()
    changes = {"device": "cpu"} if arguments.int8 else {}
    runtime = start(params.runtime.model_copy(update=changes))
    checkpoint = load_checkpoint(arguments.checkpoint, runtime.device)
    model = to_int8(checkpoint.model) if arguments.int8 else checkpoint.model
    info = checkpoint.dataset
    if arguments.json is not None:
        check_writable(arguments.json)  # fail now, not after the work
    if arguments.folder is not None:
        source = str(arguments.folder)
        batches, count = _folder(arguments.folder, info, params, runtime)
    else:
        split = arguments.split or "test"
        source = f"{PREPARED}, {split}"
        batches, count = _split(split, info, params, runtime)
    scores, confusion = _score(model, batches, count, info, runtime)
    integers = ", in 8-bit integers" if arguments.int8 else ""
    print(
        f"{arguments.checkpoint}: {checkpoint.architecture}, {len(info.classes)} classes{integers}"
    )
    print(f"{source}: {int(confusion.sum())} images")
    _print_scores(scores)
    _print_classes(info.classes, confusion)
    _print_confusion(info.classes, confusion)
    if arguments.json is not None:
        content = {
            "checkpoint": str(arguments.checkpoint),
            "architecture": checkpoint.architecture,
            "data": source,
            **_results(info.classes, scores, confusion),
        }
        write_json(arguments.json, content)


def confusion_matrix(actual: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Count the images by true and predicted class: int64 [actual, predicted]."""
    return torch.bincount(actual * classes + predicted, minlength=classes**2).view(classes, -1)


def _arguments() -> argparse.Namespace:
    parser = Parser(
        prog="python -m stages.evaluate",
        description="Score a checkpoint: loss, top-1, top-5, accuracy per class, and confusions.",
    )
    parser.add_argument("checkpoint", type=Path, help="such as checkpoints/fp.safetensors")
    data = parser.add_mutually_exclusive_group()
    data.add_argument("--split", choices=SPLITS, help="of data/prepared; default: test")
    data.add_argument(
        "--folder", type=Path, metavar="DIR", help="images in DIR/<class>/* instead of a split"
    )
    parser.add_argument(
        "--int8", action="store_true", help="on the CPU, in 8-bit integers (qnet.to_int8)"
    )
    parser.add_argument(
        "--json", type=output_file(".json"), metavar="FILE", help="also write all results there"
    )
    return parser.parse_args()


def _split(
    name: str, info: DatasetInfo, params: Params, runtime: Runtime
) -> tuple[BatchSource, int]:
    """The images of a prepared split, and their number."""
    prepared = prepared_like(info, ", or use --folder")
    if name != "test":
        _warn_of_training_images(name, prepared, info)
    return evaluation_images(name, params, info, runtime), prepared.counts[name]


def _warn_of_training_images(name: str, prepared: DatasetInfo, trained_on: DatasetInfo) -> None:
    """Print a warning unless this split is known to be the one of when the network was trained."""
    if (prepared.counts, prepared.mean) != (trained_on.counts, trained_on.mean):
        how = "is split differently"
    elif prepared.name == "imagenet":  # its mean is fixed
        how = "may be split differently (cannot be checked)"
    else:
        return
    print(
        f"evaluate: {PREPARED} {how} than when this network was trained: "
        f"{name} may include images that it was trained on"
    )


def _folder(
    folder: Path, info: DatasetInfo, params: Params, runtime: Runtime
) -> tuple[BatchSource, int]:
    """The images below a folder, preprocessed as for the network's validation, and their number."""
    batch_size, device = evaluation_batch(info), runtime.device
    if info.name == "imagenet":
        from qnet.data.streamed import StreamedBatches  # torchvision takes seconds to import

        listing = list_class_folders(folder, info.classes)
        batches = StreamedBatches(
            listing, info, batch_size=batch_size, device=device, workers=runtime.workers,
            bad_images=params.data.bad_images, name=str(folder), warn=warn,
        )  # fmt: skip
        return batches, len(listing)
    split, notes = load_class_folders(
        folder, info.classes, info.size, info.channels, counter("read")
    )
    for note in notes:
        print(f"evaluate: {note}")
    return Batches(split, info, batch_size=batch_size, device=device), len(split)


def _score(
    model: nn.Module, batches: BatchSource, count: int, info: DatasetInfo, runtime: Runtime
) -> tuple[dict[str, float], Tensor]:
    """Scores, computed without bfloat16, and the confusion matrix."""
    progress = partial(bar, count=evaluation_steps(count, info), title="evaluate")
    scores, actual, predicted = evaluate_classes(
        model, batches, replace(runtime, mixed=False), progress
    )
    return scores, confusion_matrix(actual, predicted, len(info.classes))


def _results(
    classes: tuple[str, ...], scores: dict[str, float], confusion: Tensor
) -> dict[str, Any]:
    """All figures, for --json."""
    return {
        "images": int(confusion.sum()),
        **scores,
        "classes": {
            name: {"images": count, "top1": top1}
            for name, count, top1 in _per_class(classes, confusion)
        },
        "confusion": confusion.tolist(),  # a row for each true class
    }


def _per_class(classes: tuple[str, ...], confusion: Tensor) -> list[tuple[str, int, float | None]]:
    """Name, number of images and top-1 in percent of each class; top-1 is None without images."""
    counts, right = confusion.sum(dim=1).tolist(), confusion.diagonal().tolist()
    return [
        (name, count, 100 * hits / count if count else None)
        for name, count, hits in zip(classes, counts, right, strict=True)
    ]


def _print_scores(scores: dict[str, float]) -> None:
    print(f"\nloss   {scores['loss']:8.4f}")
    print(f"top-1  {scores['top1']:8.2f} %")
    print(f"top-5  {scores['top5']:8.2f} %")


def _print_classes(classes: tuple[str, ...], confusion: Tensor) -> None:
    labels = _labels(classes)
    print(f"\n{'class':{len(labels[0])}}   images  top-1 %")
    for label, (_, count, top1) in zip(labels, _per_class(classes, confusion), strict=True):
        print(f"{label}  {count:7,}  {'-' if top1 is None else f'{top1:.2f}':>7}")


def _print_confusion(classes: tuple[str, ...], confusion: Tensor) -> None:
    labels = _labels(classes)
    if len(classes) > LARGEST_MATRIX:
        _print_most_frequent(labels, confusion)
        return
    width = max(len(str(int(confusion.max()))), len(str(len(classes) - 1))) + 2
    print("\nconfusion: a row for each true class, a column for each predicted one")
    print(" " * len(labels[0]) + "".join(f"{number:{width}}" for number in range(len(classes))))
    for label, row in zip(labels, confusion.tolist(), strict=True):
        print(label + "".join(f"{count:{width}}" for count in row))


def _print_most_frequent(labels: list[str], confusion: Tensor) -> None:
    wrong = confusion.clone().fill_diagonal_(0).flatten()
    order = wrong.argsort(descending=True, stable=True)[:CONFUSIONS].tolist()
    pairs = [divmod(index, len(labels)) for index in order if wrong[index] > 0]
    print(f"\nthe most frequent of {int(wrong.count_nonzero())} confusions")
    width = len(labels[0])
    print(f"{'true class':{width}}  {'taken for':{width}}   images  % of class")
    for actual, predicted in pairs:
        count = int(confusion[actual, predicted])
        share = 100 * count / int(confusion[actual].sum())
        print(f"{labels[actual]}  {labels[predicted]}  {count:7,}  {share:10.2f}")


def _labels(classes: tuple[str, ...]) -> list[str]:
    """Number and name of each class, padded to one width."""
    digits, width = len(str(len(classes) - 1)), max(len(name) for name in classes)
    width = max(width, len("true class") - digits - 1)
    return [f"{number:{digits}} {name:{width}}" for number, name in enumerate(classes)]


if __name__ == "__main__":
    run_tool(main)
