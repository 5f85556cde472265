"""Read from a timestep which step of which generation a U-Net call is.

A pipeline sets its scheduler's timesteps and passes the U-Net one element of that tensor after the other. Values may
repeat in the tensor (PNDM, Heun, KDPM2), but places in memory do not:

- another memory means another generation;
- an earlier place means that the generation begins anew;
- the same place means another call of the same step, as when the conditional and the unconditional call are apart;
- a later place means the next step, unless it lies far beyond what the steps before passed over.

Reading a place reads nothing back from the device. A number or a copy has no place; it stands for the pipeline's
timestep of the same value, if there is one.
"""

from __future__ import annotations

from math import inf, prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

Values = tuple[float, ...]  # one value for each sample, or one value for all samples


class Place(NamedTuple):
    """The place of a timestep: the number of its memory, and its offset in that memory in elements."""

    memory: int
    offset: int


def place(timestep: Any, timesteps: Tensor | None) -> Place | None:
    """Return the place of a timestep that is part of a tensor of timesteps; None for a number or a copy.

    The only element of a tensor is part of the tensor if it is a view, as indexing makes it. In inference mode torch
    does not tell views; there, such an element has a place only if it lies in `timesteps`, the scheduler's (T).
    """
    if not isinstance(timestep, Tensor):
        return None
    memory = timestep.untyped_storage()
    num_own = prod(size for size, stride in zip(timestep.shape, timestep.stride(), strict=True) if stride)
    is_part = (
        memory.nbytes() > num_own * timestep.element_size()
        or (num_own == 1 and timestep._is_view())
        or (timesteps is not None and timesteps.untyped_storage()._cdata == memory._cdata)
    )
    return Place(memory._cdata, int(timestep.storage_offset())) if is_part else None


def values(timestep: Any) -> Values | None:
    """Return the value of a timestep, or a value for each sample if they differ; None if it is on a device."""
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
    """Return the place of the scheduler's timestep that a number or a copy stands for; a cast may have changed it.

    The place is None if the value is none of the scheduler's, or passes over some: it may be another generation's.

    Args:
        timestep, timesteps: the timestep of a U-Net call, and the scheduler's timesteps (T).
        last: the offset in memory of the last call's timestep; None before the first call.
        is_complete: whether the last call was the last call of its step, so that the next timestep is expected.
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
    if last is not None:  # prefer the timestep that goes on, else a timestep at which a generation begins anew
        expected = last + stride if is_complete else last
        offsets = [offset for offset in offsets if offset == expected] or [each for each in offsets if each <= last]
    return Place(timesteps.untyped_storage()._cdata, offsets[0]) if offsets else None


def _lost(timestep: Any, timesteps: Tensor) -> float:
    """Return how far a number or a copy may lie from the timestep that it was made from."""
    copy = timestep if isinstance(timestep, Tensor) else torch.tensor(timestep)
    if not copy.is_floating_point():  # a cast to a whole number truncates
        return 1.0 if timesteps.is_floating_point() else 0.0
    epsilon = max(torch.finfo(kind).eps for kind in (copy.dtype, torch.float32))
    return epsilon * float(copy.flatten()[0].abs())


def counted_place(timestep: Any, scheduler: Any) -> Place | None:
    """Return the place that a scheduler's `step_index` tells, for a copy of its timestep; None if the values disagree.

    A transformer is given t, t / T or 1 - t / T (T training timesteps); a value on a device is not compared. The
    scheduler's `step_index` is None before the first step.
    """
    index = scheduler.step_index if scheduler.step_index is not None else scheduler.begin_index or 0
    timesteps, found = scheduler.timesteps, values(timestep)
    if index >= len(timesteps):
        return None
    if found is not None and timesteps.device.type == "cpu":
        own = float(timesteps[index])
        share = own / scheduler.config.num_train_timesteps
        kind = timestep.dtype if isinstance(timestep, Tensor) and timestep.is_floating_point() else torch.float32
        most = 4 * torch.finfo(kind).eps
        if len(found) > 1 or all(abs(found[0] - each) > most * max(1.0, abs(each)) for each in (own, share, 1 - share)):
            return None
    return Place(timesteps.untyped_storage()._cdata, int(timesteps.storage_offset()) + index * stride_of(timesteps))


def goes_on(found: Values, last: Values, direction: int) -> int:
    """Return the direction in which a step's values go on from the last step's: -1 down, 1 up, 0 if they do not.

    A `direction` so far, other than 0, is the only one that is accepted.
    """
    if len(found) != len(last):
        found, last = (max(found),), (max(last),)
    for sign in (-1, 1):
        changes = [sign * (now - before) for now, before in zip(found, last, strict=True)]
        if direction in (0, sign) and min(changes) >= 0 and max(changes) > 0:
            return sign
    return 0


def num_left(found: Place | None, timesteps: Tensor | None) -> int | None:
    """Return how many of the scheduler's timesteps are left from a place on; None if the place is not in them."""
    if found is None or timesteps is None or found.memory != timesteps.untyped_storage()._cdata:
        return None
    return len(timesteps) - int(found.offset - timesteps.storage_offset()) // stride_of(timesteps)


def span_of(timestep: Any) -> int:
    """Return how many elements of memory the timestep of a call takes; 1 for a number."""
    if not isinstance(timestep, Tensor):
        return 1
    return 1 + sum((size - 1) * stride for size, stride in zip(timestep.shape, timestep.stride(), strict=True))


def stride_of(timesteps: Tensor | None) -> int:
    """Return the distance in memory between neighbouring timesteps, in elements; 1 without a scheduler."""
    return 1 if timesteps is None else max(int(timesteps.stride(0)), 1)


def num_after(timestep: Tensor) -> int:
    """Return the largest possible number of timesteps from a timestep with a place on."""
    memory = timestep.untyped_storage()
    return memory.nbytes() // timestep.element_size() - int(timestep.storage_offset())


def lifetime(timestep: Tensor) -> StorageWeakRef:
    """Return a reference that expires with a timestep's memory; until then no other memory gets the same number."""
    return StorageWeakRef(timestep.untyped_storage())
