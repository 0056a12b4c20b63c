"""Write a checkpoint for deployment, with packed weights: `python -m stages.pack --help`."""

from __future__ import annotations

import argparse
from pathlib import Path

from qnet.checkpoint import load_checkpoint, save_checkpoint
from qnet.errors import UserError
from qnet.packing import packed_state
from qnet.size import full_precision_bytes, model_bytes
from stages.common import Parser, run_tool


def main() -> None:
    """Pack the checkpoint named on the command line and print its new size."""
    arguments = _arguments()
    checkpoint = load_checkpoint(arguments.checkpoint)
    if arguments.output.exists() and arguments.output.samefile(arguments.checkpoint):
        raise UserError(
            f"{arguments.output} is the checkpoint itself, whose trained weights would be lost; "
            "give another name"
        )
    if arguments.output.is_file() and not _is_packed(arguments.output):
        raise UserError(
            f"{arguments.output} exists and is not a packed checkpoint; give another name, or "
            "remove it"
        )
    try:
        packed_state(checkpoint.model)
    except UserError as error:
        raise UserError(f"{arguments.checkpoint}: {error}") from None
    save_checkpoint(arguments.output, checkpoint, packed=True)
    size = model_bytes(checkpoint.model)
    described = arguments.output.stat().st_size - size
    print(
        f"{arguments.output}: {size:,} bytes of network, "
        f"{full_precision_bytes(checkpoint.model) / size:.1f}× less than in full precision, "
        f"plus {described:,} bytes of metadata"
    )


def _is_packed(path: Path) -> bool:
    try:
        return load_checkpoint(path).packed
    except UserError:
        return False


def _arguments() -> argparse.Namespace:
    parser = Parser(
        prog="python -m stages.pack",
        description="Write a checkpoint for deployment: weights packed into their bits, and "
        "nothing that only training needs. The file loads like any checkpoint.",
    )
    parser.add_argument("checkpoint", type=Path, help="such as checkpoints/activations.safetensors")
    parser.add_argument("output", type=Path, help="the file to write, such as packed.safetensors")
    return parser.parse_args()


if __name__ == "__main__":
    run_tool(main)
