"""This module counts the bytes that the tensors of a computation hold at once, exactly, on any device."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """Within the block, counts the bytes of living storages that operators have made, and the largest sum of them.

    Weights and inputs from before the block do not count, nor does what an operator holds only while it runs.
    """

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)  # not super(), behind which mypy sees no torch
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {_address(value) for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)}
        output = func(*args, **(kwargs or {}))
        for value in tree_leaves(output):
            if isinstance(value, torch.Tensor) and _address(value) not in before | self._known:
                self._count(value)
        return output

    def _count(self, value: torch.Tensor) -> None:
        storage = value.untyped_storage()
        address, num_bytes = storage.data_ptr(), storage.nbytes()
        self._known.add(address)
        self.live += num_bytes
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._freed, address, num_bytes)

    def _freed(self, address: int, num_bytes: int) -> None:
        self._known.discard(address)
        self.live -= num_bytes


def _address(value: torch.Tensor) -> int:
    return value.untyped_storage().data_ptr()
