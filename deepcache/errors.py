"""The library's exceptions: each message says what was expected, what came, and what to do."""

from __future__ import annotations


class DeepCacheError(Exception):
    """A user's mistake or a missing piece; the command line prints the message alone and exits with 2."""


class UnsupportedUNetError(DeepCacheError):
    """This U-Net, or one of its inputs, cannot be cached; refused before anything ran."""


class DeepCacheWarning(UserWarning):
    """What was asked for can be done, and does not pay."""
