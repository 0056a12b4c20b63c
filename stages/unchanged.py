"""Refusal to write results beside parameters that they were not made with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qnet.errors import UserError
from qnet.params import Params, load_params


def check_unchanged(params: Params, reads: Mapping[str, Any]) -> None:
    """Check that params.yaml, which DVC records after a stage, still says what the stage read.

    Args:
        params: as the stage read them.
        reads: which of them it uses, as pydantic's `include`.

    Raises:
        UserError: one of these has another value now.
    """
    now = dict(dotted(load_params().model_dump(include=dict(reads))))
    for name, value in dotted(params.model_dump(include=dict(reads))):
        if now.get(name) != value:
            raise UserError(
                f"{name} in params.yaml was {value} when this stage began and is {now.get(name)}, "
                "which DVC would record: set it back and run again (training then only writes its "
                "results), or run again as it is"
            )


def dotted(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each value of a tree with its dotted name."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
