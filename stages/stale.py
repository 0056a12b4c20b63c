"""Inputs that changed since stages read them, according to DVC's dvc.lock."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def changed_since(lock: Mapping[str, Any], params: Mapping[str, Any]) -> list[str]:
    """Parameters (dotted names) and stage outputs that differ from what some stage read.

    Args:
        lock: the content of dvc.lock.
        params: the content of params.yaml.
    """
    stages = lock["stages"].values()
    written = {out["path"]: out.get("md5") for stage in stages for out in stage.get("outs", [])}
    changed = set()
    for stage in stages:
        for name, value in stage.get("params", {}).get("params.yaml", {}).items():
            if plain(value) != plain(_at(params, name)):
                changed.add(name)
        for dep in stage.get("deps", []):
            if dep["path"] in written and written[dep["path"]] != dep.get("md5"):
                changed.add(dep["path"])
    return sorted(changed)


def _at(tree: Any, name: str) -> Any:
    """The entry with this dotted name in a tree; None if there is none."""
    for key in name.split("."):
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def plain(value: Any) -> Any:
    """Normalise numbers, booleans and null in a tree, however they are written."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if value is None or str(value).lower() in ("", "~", "null"):
        return None
    if str(value).lower() in ("true", "false"):
        return str(value).lower()
    try:
        return float(value)
    except (TypeError, ValueError):
        return value
