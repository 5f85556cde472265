"""Tells which step of which generation a U-Net call is, from the timestep that it is given.

A pipeline sets its scheduler's timesteps and passes the U-Net one element of that tensor after the other. Values may
repeat there (PNDM, Heun, KDPM2), places in memory do not: another tensor is another generation, an earlier place is a
generation that begins anew, the same place is another call of the same step (conditional and unconditional apart), and
a later place is the next step. Reading a place reads nothing back from the device.

A number or a copy has no place. Where its value is one of the pipeline's timesteps, it stands for that element.
"""

from __future__ import annotations

from math import inf, prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

Values = tuple[float, ...]  # one a sample, or one for all


class Place(NamedTuple):
    """Where a timestep lies: in which memory, and how far into it."""

    memory: int
    offset: int


def place(timestep: Any, timesteps: Tensor | None) -> Place | None:
    """Return the place of a timestep, or None for one that is no part of a tensor of timesteps (a number, a copy).

    The only element of a tensor is part of it if it is a view, as indexing makes it. In inference mode torch does not
    say what is a view; such an element has a place only if it lies in `timesteps`.

    Args:
        timestep: what the U-Net is given.
        timesteps: the scheduler's, if there is one.
    """
    if not isinstance(timestep, Tensor):
        return None
    memory, num_own = timestep.untyped_storage(), _num_elements(timestep)
    is_part = (
        memory.nbytes() > num_own * timestep.element_size()
        or (num_own == 1 and timestep._is_view())
        or (timesteps is not None and timesteps.untyped_storage()._cdata == memory._cdata)
    )
    return Place(memory._cdata, int(timestep.storage_offset())) if is_part else None


def values(timestep: Any) -> Values | None:
    """Return the value of a timestep, or each sample's where they differ; None where it is on a device.

    Args:
        timestep: what the U-Net is given.
    """
    if isinstance(timestep, Tensor):
        if timestep.device.type != "cpu":
            return None
        each = tuple(map(float, timestep.flatten().tolist()))
        return each[:1] if len(set(each)) == 1 else each
    try:
        return (float(timestep),)
    except (TypeError, ValueError):
        return None


def matched(timestep: Any, timesteps: Tensor, last: int | None, *, is_complete: bool) -> Place | None:
    """Return the place of the scheduler's timestep that a number or a copy stands for.

    None if it is none of them, or one that passes over others: nothing says that these belong to one generation.

    Args:
        timestep: what the U-Net is given; it may have lost what a cast to its type loses.
        timesteps: the scheduler's.
        last: the offset of the last call's timestep in memory; None before the first.
        is_complete: whether the last call was the last one of its step, so that the next element is expected.
    """
    found = values(timestep)
    if found is None or len(found) != 1 or timesteps.device.type != "cpu":
        return None
    begin, stride = int(timesteps.storage_offset()), stride_of(timesteps)
    distances = [abs(element - found[0]) for element in timesteps.tolist()]
    nearest = min(distances, default=inf)
    if nearest > _lost(timestep, timesteps):
        return None
    offsets = [begin + i * stride for i, distance in enumerate(distances) if distance == nearest]
    if last is not None:  # of equal values the one that goes on; else one from which the timesteps begin anew
        expected = last + stride if is_complete else last
        offsets = [offset for offset in offsets if offset == expected] or [each for each in offsets if each <= last]
    return Place(timesteps.untyped_storage()._cdata, offsets[0]) if offsets else None


def _lost(timestep: Any, timesteps: Tensor) -> float:
    """How far a number or a copy may lie from the timestep that it was made of."""
    copy = timestep if isinstance(timestep, Tensor) else torch.tensor(timestep)
    if not copy.is_floating_point():  # truncated
        return 1.0 if timesteps.is_floating_point() else 0.0
    epsilon = max(torch.finfo(kind).eps for kind in (copy.dtype, torch.float32))
    return epsilon * float(copy.flatten()[0].abs())


def goes_on(found: Values, last: Values, direction: int) -> int:
    """Return the direction in which values go on from the last step's: -1 down, 1 up, 0 if they do not.

    Args:
        found, last: the values of the two steps.
        direction: the direction so far; 0 if it is open.
    """
    if len(found) != len(last):
        found, last = (max(found),), (max(last),)
    for sign in (-1, 1):
        changes = [sign * (now - before) for now, before in zip(found, last, strict=True)]
        if direction in (0, sign) and min(changes) >= 0 and max(changes) > 0:
            return sign
    return 0


def num_left(found: Place, timesteps: Tensor | None) -> int | None:
    """Return how many of the scheduler's timesteps are left from a place on; None if it is none of them."""
    if timesteps is None or found.memory != timesteps.untyped_storage()._cdata:
        return None
    return len(timesteps) - int(found.offset - timesteps.storage_offset()) // stride_of(timesteps)


def stride_of(timesteps: Tensor | None) -> int:
    """Return how many elements of memory lie from one of the scheduler's timesteps to the next; 1 of no scheduler."""
    return 1 if timesteps is None else max(int(timesteps.stride(0)), 1)


def num_after(timestep: Tensor) -> int:
    """Return how many timesteps there can be at most from a placed one on."""
    memory = timestep.untyped_storage()
    return memory.nbytes() // timestep.element_size() - int(timestep.storage_offset())


def lifetime(timestep: Tensor) -> StorageWeakRef:
    """Return a reference that expires with the memory of a timestep; until then no other memory has its number."""
    return StorageWeakRef(timestep.untyped_storage())


def _num_elements(timestep: Tensor) -> int:
    """How many places in memory a timestep has: one, where it is expanded to the batch."""
    return prod(int(size) for size, stride in zip(timestep.shape, timestep.stride(), strict=True) if stride)
