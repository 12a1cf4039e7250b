"""The errors that a user can fix; scripts turn each into one line on stderr."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user can fix; the message is one line: which file, which rule, what to do."""


class Stalled(UserError):
    """A read that does not return, and holds a thread that nobody can end."""


class UnreadableImage(ValueError):
    """An image that cannot be used; the message is the reason, without the path."""
