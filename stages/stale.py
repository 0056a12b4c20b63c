"""What has changed since stages read it: dvc.lock, which DVC writes, says what they read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def changed_since(lock: Mapping[str, Any], params: Mapping[str, Any]) -> list[str]:
    """Parameters, by dotted name, and files of other stages that some stage read otherwise.

    Args:
        lock: the content of dvc.lock.
        params: that of params.yaml.
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
    """The entry of a tree that has this dotted name; None if there is none."""
    for key in name.split("."):
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def plain(value: Any) -> Any:
    """A tree in which numbers are numbers, truths truths and nothing nothing, however written."""
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
