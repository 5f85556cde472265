"""The library's exceptions: each message says what was expected, what came, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

# what diffusers, torch and other packages raise where a U-Net or an input does not suit them
FAILURES = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)


class DeepCacheError(Exception):
    """A user's mistake or a missing piece; the command line prints the message alone and exits with 2."""


class UnsupportedUNetError(DeepCacheError):
    """This U-Net, or one of its inputs, cannot be cached; refused before anything ran."""


class DeepCacheWarning(UserWarning):
    """What was asked for can be done, and does not pay."""


def first_line(error: BaseException) -> str:
    """The first line of another library's message, or the error's name where it has none."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


@contextmanager
def one_line(problem: str, remedy: str) -> Iterator[None]:
    """Turn what diffusers, torch or another package raises into an error of one line.

    Raises:
        UnsupportedUNetError: the problem, what was raised, and what to do.
    """
    try:
        yield
    except FAILURES as error:
        raise UnsupportedUNetError(f"{problem} ({first_line(error)}); {remedy}") from error


def guessed(remedy: str) -> AbstractContextManager[None]:
    """Turn what a U-Net raises on inputs that were guessed from its configuration into an error of one line."""
    return one_line("this configuration does not tell all inputs that its U-Net needs", remedy)
