"""Reader for a small YAML file without ambiguities.

Every scalar stays the text in the file, and the schema says what is a number. So `1e-06`, which
DVC writes for 0.000001, is a number although YAML 1.1 takes it for text, `010` is ten and not
eight, and nothing turns into a date.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode
from yaml.scanner import ScannerError

from qnet.errors import UserError

_MARKS = ("<" * 7, "=" * 7, ">" * 7)  # git's conflict markers

_OF_THE_LINE_BEFORE = ("mapping values are not allowed here", "could not find expected ':'")

LARGEST = 100_000
"""Largest file that is read, in bytes; a recipe has about 8,000."""


def read_yaml(path: str | Path) -> Any:
    """Read the mappings, lists and strings in the file `path`.

    Raises:
        UserError: the file is missing, too large, not text, not YAML, gives a key twice or uses
            an alias.
    """
    text = _read_text(Path(path))
    for number, row in enumerate(text.splitlines(), start=1):
        if row.startswith(_MARKS):
            raise UserError(f"{path}: line {number} is a merge conflict marker; resolve it")
    try:
        return yaml.load(text, _TextLoader)
    except yaml.MarkedYAMLError as error:
        raise UserError(f"{path}: {_explain(error)}") from None
    except RecursionError:
        raise UserError(f"{path}: it is nested too deeply; two levels are enough") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # which PyYAML does not wrap
        problem = " ".join(str(error).split())
        raise UserError(f"{path}: it is not valid YAML: {problem}") from None


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run this from the project's folder") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: it cannot be read: {reason}") from None
    if len(content) > LARGEST:
        raise UserError(f"{path}: it is larger than {LARGEST} bytes; is it the right file?")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: it is not text in UTF-8; save it as UTF-8") from None


def _explain(error: yaml.MarkedYAMLError) -> str:
    problem = ", ".join(part for part in (error.context, error.problem) if part)
    marks = [error.problem_mark]
    if isinstance(error, ScannerError):  # the context is the faulty word, some lines before
        marks.insert(0, error.context_mark)
    lines = [str(mark.line + 1) for mark in marks if mark is not None]
    where = f"line {lines[-1]} is"
    if lines[0] != lines[-1]:
        where = f"lines {lines[0]} to {lines[-1]} are"
    remedy = ""
    if r"'\t'" in problem:
        remedy = "; indent with spaces"
    elif error.problem in _OF_THE_LINE_BEFORE:
        remedy = "; is each `name: value` here and in the line before indented alike and complete?"
    return f"{where} not valid YAML: {problem}{remedy}"


def _problem(words: str, mark: yaml.Mark) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=words, problem_mark=mark)


class _TextLoader(yaml.BaseLoader):
    """YAML loader without types, and without aliases and other ways to set a parameter twice."""

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            words = f"'*{event.anchor}' repeats another value; write the value itself"
            raise _problem(words, event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                raise _problem("a list or a section cannot be a name", key.start_mark)
            if key.value in seen:
                raise _problem(f"{key.value!r} is given twice; keep one of them", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)
