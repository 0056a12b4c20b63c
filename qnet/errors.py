"""The one exception for mistakes that a user can mend."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in a parameter, a file or an argument.

    The message is one line: the parameter or file, its value, what is allowed, what to do.
    """
