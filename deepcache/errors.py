"""The library's exceptions and warnings: each message says what was expected, what came, and what to do."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_CALLED = ("deepcache", "diffusers", "torch", "accelerate", "peft", "contextlib", "functools")  # by a user's line


class DeepCacheError(Exception):
    """A user's mistake or a missing piece; the command line prints the message alone and exits with 2."""


class UnsupportedUNetError(DeepCacheError):
    """This U-Net, or one of its inputs, cannot be cached; refused before anything ran."""


class DeepCacheWarning(UserWarning):
    """What was asked for can be done, and does not pay."""


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
