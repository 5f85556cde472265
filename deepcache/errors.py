"""The library's exceptions and warnings: each message says what was expected, what came, and what to do."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

FAILURES = (  # what networks raise on inputs and configurations that are wrong
    ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, NameError, RuntimeError, TypeError,
    ValueError,
)  # fmt: skip
_MOST_SHOWN = 200  # characters of a foreign value or message in a line of ours
_CALLED = ("deepcache", "diffusers", "torch", "accelerate", "peft", "contextlib", "functools")  # by a user's line


class DeepCacheError(Exception):
    """A user's mistake or a missing piece; the command line prints the message alone and exits with 2.

    The message is one line also where it quotes a line break, say of a file's name.
    """

    def __str__(self) -> str:
        return " ".join(super().__str__().splitlines())


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


def warn(message: str) -> None:
    """Give a `DeepCacheWarning` that points at the user's line.

    That is the innermost line outside of this package and of the packages that stand between it and the user: a
    pipeline's call enters the library through diffusers and torch.
    """
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _CALLED:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, DeepCacheWarning, stacklevel=level)


@contextmanager
def needs(act: str, extra: str) -> Iterator[None]:
    """Within the block, a package that cannot be imported is one line.

    Args:
        act: what needs the package, the subject of the sentence.
        extra: the extra of the distribution that installs the package.

    Raises:
        DeepCacheError: instead of an ImportError.
    """
    try:
        yield
    except ImportError as error:
        package = f"the package {error.name.partition('.')[0]}" if error.name else "another package"
        reason = str(error).splitlines()[0]
        raise DeepCacheError(
            f"{act} needs {package}, which cannot be imported ({reason}); pip install 'deepcache-bench[{extra}]'"
        ) from error
