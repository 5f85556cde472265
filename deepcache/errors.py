"""The library's exceptions: each message says what was expected, what came, and what to do."""

from __future__ import annotations

_MOST_SHOWN = 200  # characters of a foreign value or message in a line of ours


class DeepCacheError(Exception):
    """A user's mistake or a missing piece; the command line prints the message alone and exits with 2."""


class UnsupportedUNetError(DeepCacheError):
    """This U-Net, or one of its inputs, cannot be cached; refused before anything ran."""


class DeepCacheWarning(UserWarning):
    """What was asked for can be done, and does not pay."""


def shown(value: object) -> str:
    """What Python calls a value that a user or a file gave, short and on one line, for a message of ours."""
    try:
        return on_one_line(repr(value))
    except (ValueError, RecursionError):  # a whole number of more digits than Python prints; a list of lists of lists
        return f"a {type(value).__name__} that is too large to show"


def first_line(error: BaseException) -> str:
    """The first line of another library's message, or the error's name where it has none."""
    return on_one_line(next(iter(str(error).splitlines()), "")) or type(error).__name__


def on_one_line(text: object) -> str:
    """A text, or an error's message, cut to some 200 characters, with a space for each line break."""
    joined = " ".join(str(text).split())
    return joined if len(joined) <= _MOST_SHOWN else f"{joined[:_MOST_SHOWN]}..."
