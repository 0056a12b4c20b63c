"""The one exception for mistakes that a user can fix, and phrases for its messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class UserError(Exception):
    """A mistake in a parameter, a file or an argument.

    The message is one line: the parameter or file, its value, what is allowed, what to do.
    """


def one_line(error: BaseException) -> str:
    """What another library's `error` says, as part of such a message."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def some(names: Sequence[str]) -> str:
    """The first three of `names`, and how many more there are."""
    more = f" (and {len(names) - 3} more)" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def nearest(name: str, known: Sequence[str]) -> str:
    """The one of the `known` names that is most like `name`, as part of such a message."""
    like = most_like(name, known, cutoff=0.0)
    return "there is none" if like is None else f"nearest is {like!r}"


def most_like(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The one of the `known` names that is most like `name`, whatever the case of its letters.

    Args:
        name: what was given.
        known: what is allowed.
        cutoff: how like it must be, from 0 (anything will do) to 1 (the same).
    """
    by_lower = {other.lower(): other for other in known}
    like = get_close_matches(name.lower(), by_lower, n=1, cutoff=cutoff)
    return by_lower[like[0]] if like else None
