"""The one exception for mistakes that a user can fix, and phrases for its messages."""

from __future__ import annotations

from collections.abc import Sequence
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
    if not known:
        return "there is none"
    return f"nearest is {get_close_matches(name, known, n=1, cutoff=0.0)[0]!r}"
