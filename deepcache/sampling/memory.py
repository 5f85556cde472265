"""Batches for which the memory is too small."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

import torch

from deepcache.errors import DeepCacheError

Made = TypeVar("Made")
_OUT_OF_MEMORY = ("DefaultCPUAllocator", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def say(line: str) -> None:
    """On stderr."""
    print(line, file=sys.stderr, flush=True)


def is_out_of_memory(error: Exception) -> bool:
    """Some allocators raise a plain RuntimeError."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        text in str(error) for text in _OUT_OF_MEMORY
    )


def halved(count: int, *, is_halved: bool, say: Callable[[str], None] = say) -> int:
    """Half of as many samples as did not fit, once their tensors are gone; told in one line.

    Raises:
        DeepCacheError: halving was not asked for, or of a single sample.
    """
    if not is_halved or count == 1:
        raise DeepCacheError(
            f"not enough memory for {count} samples together; "
            + ("take fp16 or another device" if count == 1 else f"take --batch-size auto, or less than {count}")
        )
    torch.cuda.empty_cache()
    say(f"not enough memory for {count} samples together; going on with batches of {count // 2}")
    return count // 2


def fitting(make: Callable[[int], Made], batch_size: int, *, is_halved: bool) -> Made:
    """What `make` makes of a batch size, which is halved until the memory does.

    Raises:
        DeepCacheError: as `halved`.
    """
    while True:
        try:
            return make(batch_size)
        except (RuntimeError, MemoryError) as error:  # torch's out of memory is a RuntimeError
            if not is_out_of_memory(error):
                raise
        batch_size = halved(batch_size, is_halved=is_halved)  # when the error, which holds the tensors, is gone
