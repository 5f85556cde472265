"""Which step of which generation a U-Net call is, told by where its timestep lies in memory.

A pipeline sets its scheduler's timesteps and passes the U-Net one element of that tensor after the other. Values may
repeat there (PNDM, Heun, KDPM2), places do not: another tensor is another generation, an earlier place one that begins
anew, the same place another call of the same step (conditional and unconditional apart), a later place the next step.
Nothing is read back from the device.
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef


class Place(NamedTuple):
    """Where a timestep lies: in which memory, and how far into it."""

    memory: int
    offset: int


def place(timestep: Any, timesteps: Tensor | None) -> Place | None:
    """The place of a timestep, or None for one that is no part of a longer tensor (a number, a copy).

    Args:
        timestep: as the U-Net is given it.
        timesteps: the scheduler's, if there is one.
    """
    if not isinstance(timestep, Tensor):
        return None
    memory = timestep.untyped_storage()
    is_part = memory.nbytes() > _num_elements(timestep) * timestep.element_size()
    if timesteps is None:
        is_part = is_part or timestep._is_view()  # of a generation of one step
    else:
        is_part = is_part or timesteps.untyped_storage()._cdata == memory._cdata
    return Place(memory._cdata, int(timestep.storage_offset())) if is_part else None


def num_left(found: Place | None, timesteps: Tensor | None, begin_index: int | None) -> int | None:
    """How many of a scheduler's timesteps are left from a place on; None if it is not one of them."""
    if timesteps is None:
        return None
    if found is None:
        return len(timesteps) - (begin_index or 0)
    if found.memory != timesteps.untyped_storage()._cdata:
        return None
    return len(timesteps) - int(found.offset - timesteps.storage_offset()) // max(int(timesteps.stride(0)), 1)


def num_after(timestep: Tensor) -> int:
    """How many timesteps there can be at most from a placed one on."""
    memory = timestep.untyped_storage()
    return memory.nbytes() // timestep.element_size() - int(timestep.storage_offset())


def lifetime(timestep: Tensor) -> StorageWeakRef:
    """Expires with the tensor that a timestep is a part of; until then no other memory has its number."""
    return StorageWeakRef(timestep.untyped_storage())


def _num_elements(timestep: Tensor) -> int:
    """How many places in memory a timestep has: one, where it is expanded to the batch."""
    return prod(int(size) for size, stride in zip(timestep.shape, timestep.stride(), strict=True) if stride)
