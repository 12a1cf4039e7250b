"""The errors that a user can fix. Scripts print each as one line on stderr."""

from __future__ import annotations


class UserError(ValueError):
    """An error that the user can fix. The message says in one line what is wrong and what to do."""


class Stalled(UserError):
    """A read that does not return, in a thread that cannot be stopped."""


class UnreadableImage(ValueError):
    """An image that cannot be used. The message is the reason, without the path."""
