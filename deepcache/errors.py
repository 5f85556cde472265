"""The library's exceptions and warnings. Each message says what was expected, what came, and what to do."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

FAILURES = (  # what networks raise on wrong inputs and wrong configurations
    ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, NameError, RuntimeError, TypeError,
    ValueError,
)  # fmt: skip
_OUT_OF_MEMORY = ("DefaultCPUAllocator", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
_MOST_SHOWN = 200  # characters of a foreign value or message in a line of ours
_BETWEEN = ("deepcache", "diffusers", "torch", "accelerate", "peft", "contextlib", "functools")  # user's line and ours


class DeepCacheError(Exception):
    """A mistake of the user, or a missing piece, in a message of one line; the command line then exits with 2."""

    def __str__(self) -> str:
        return " ".join(super().__str__().splitlines())


class UnsupportedUNetError(DeepCacheError):
    """This U-Net, or one of its inputs, cannot be cached. The library raises this error before anything runs."""


class DeepCacheWarning(UserWarning):
    """The library can do what the user asked for, but doing so does not pay."""


def shown(value: object) -> str:
    """Return the `repr` of a foreign value, short and on one line, for an error message."""
    try:
        return on_one_line(repr(value))
    except (ValueError, RecursionError):  # an int with more digits than Python prints, or lists nested too deep
        return f"a {type(value).__name__} that is too large to show"
    except Exception:  # whatever a foreign class does, the message is the one about its value
        return f"a {type(value).__name__} that cannot be shown"


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error says that memory ran out; some allocators raise a plain RuntimeError."""
    is_told = any(text in str(error) for text in _OUT_OF_MEMORY)
    return is_told or isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch's


def first_line(error: BaseException) -> str:
    """Return the first line of another library's message, or the name of the error if the message is empty."""
    return on_one_line(next(iter(str(error).splitlines()), "")) or type(error).__name__


def on_one_line(text: object) -> str:
    """Return a text on one line, cut to some 200 characters."""
    joined = " ".join(str(text).split())
    return joined if len(joined) <= _MOST_SHOWN else f"{joined[:_MOST_SHOWN]}..."


@contextmanager
def one_line(problem: str, remedy: str) -> Iterator[None]:
    """Inside the block, turn `FAILURES` of other packages into an `UnsupportedUNetError` of one line.

    An error that says that memory ran out stays as it is: a smaller batch may do.
    """
    try:
        yield
    except FAILURES as error:
        if is_out_of_memory(error):
            raise
        raise UnsupportedUNetError(f"{problem} ({first_line(error)}); {remedy}") from error


def guessed(remedy: str) -> AbstractContextManager[None]:
    """Inside the block, turn a U-Net's error on inputs that the library guessed into an error of one line."""
    return one_line("this configuration does not tell all inputs that its U-Net needs", remedy)


def warn(message: str) -> None:
    """Issue a `DeepCacheWarning` that points at the user's line, the innermost outside the packages of `_BETWEEN`."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _BETWEEN:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, DeepCacheWarning, stacklevel=level)


@contextmanager
def needs(act: str, extra: str) -> Iterator[None]:
    """Inside the block, turn a failed import into a `DeepCacheError`: our `extra` installs what `act` needs."""
    try:
        yield
    except ImportError as error:
        package = f"the package {error.name.partition('.')[0]}" if error.name else "another package"
        raise DeepCacheError(
            f"{act} needs {package}, which cannot be imported ({first_line(error)}); "
            f"pip install 'deepcache-bench[{extra}]'"
        ) from error
