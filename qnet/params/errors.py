"""One-line descriptions of what is wrong with a params file.

pydantic finds the parameter; the schema says what is allowed, in the description of the
parameter's type or the options of a Literal.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from qnet.errors import most_like

LONGEST = 60
"""Most characters of a value that are shown."""


def explain(error: ValidationError, schema: type[BaseModel], tree: Any) -> str:
    """Describe the first problem in `tree`, and say how many more there are.

    Unknown names come first: a misspelt name explains why another one is missing.
    """
    problems = error.errors(include_url=False)
    problems.sort(key=lambda problem: problem["type"] != "extra_forbidden")
    sentences: dict[str, str] = {}  # by parameter; a union of two types reports a problem for each
    meant: set[str] = set()
    for problem in problems:
        kind, loc = problem["type"], problem["loc"]
        if kind == "extra_forbidden":
            name, suggestion, sentence = _unknown(schema, tree, loc)
            sentences[name] = sentence
            meant.add(suggestion)
            continue
        name, field, value = _find(schema, tree, loc)
        if kind == "missing":
            if name not in meant:
                sentences[name] = f"{name} is missing; add it: {_allowed(field)}"
        elif kind == "value_error" and _section(field):  # parameters that conflict
            sentences[name] = f"{name}.{problem['ctx']['error']}"
        else:
            sentences[name] = f"{name} is {_shown(value)}; it must be {_allowed(field)}"
            if near := most_like(str(value), _options(field)):
                sentences[name] += f"; did you mean {near}?"
    first, *others = sentences.values()
    return f"{first} (and {len(others)} more)" if others else first


def _find(
    schema: type[BaseModel], tree: Any, loc: tuple[int | str, ...]
) -> tuple[str, FieldInfo, Any]:
    """The dotted name at `loc`, its field and its value, without positions inside a value."""
    section: type[BaseModel] | None = schema
    field, names = FieldInfo(annotation=schema), []
    for part in loc:
        if section is None:
            break
        field = section.model_fields[str(part)]
        names.append(str(part))
        tree = tree.get(part) if isinstance(tree, Mapping) else None
        section = _section(field)
    return ".".join(names) or "the file", field, tree


def _unknown(
    schema: type[BaseModel], tree: Any, loc: tuple[int | str, ...]
) -> tuple[str, str, str]:
    """Name of an unknown parameter, the one probably meant (or ""), and a message on both."""
    _, field, given = _find(schema, tree, loc[:-1])
    known = list((_section(field) or schema).model_fields)
    absent = [name for name in known if name not in given]
    key, prefix = str(loc[-1]), "".join(f"{part}." for part in loc[:-1])
    name, suggestion = prefix + _shown(key), ""
    section, _, rest = key.partition(".")
    if rest and not prefix and section in known:
        advice = f"write {_shown(rest)} below {section}"
    elif near := most_like(key, absent) or most_like(key, known):
        suggestion = prefix + near
        advice = f"did you mean {suggestion}?"
    else:
        advice = f"remove it; known are {', '.join(known)}"
    return name, suggestion, f"{name} is not a parameter; {advice}"


def _section(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _options(field: FieldInfo) -> list[str]:
    kind = field.annotation
    return [str(option) for option in get_args(kind)] if get_origin(kind) is Literal else []


def _allowed(field: FieldInfo) -> str:
    if section := _section(field):
        return f"a section with {', '.join(section.model_fields)}"
    if options := _options(field):
        return f"{', '.join(options[:-1])} or {options[-1]}"
    return field.description or "of another type"


def _shown(value: Any) -> str:
    """`value` as written in YAML, on one line and cut if too long."""
    text = _flow(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_flow(key)}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_flow(item) for item in value) + "]"
    if value is None or value == "":
        return "empty"
    if isinstance(value, str) and not re.fullmatch(r"[!-~]+", value):
        return repr(value)  # with spaces or unprintable characters
    return str(value)
