"""Which of many processes this is, by the variables of whoever started it: they never talk to each other."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from deepcache.errors import DeepCacheError, shown
from deepcache.plan import require_whole


@dataclass(frozen=True)
class Worker:
    """Number `rank` of `count`; `local_rank` counts those on the same machine.

    Raises:
        DeepCacheError: not 0 <= rank < count.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    def __post_init__(self) -> None:
        require_whole("the number of workers", self.count, at_least=1)
        if not 0 <= self.rank < self.count:
            raise DeepCacheError(f"expected a worker out of 0..{self.count - 1}, got {self.rank}")

    def __str__(self) -> str:
        return f"worker {self.rank}/{self.count}"

    def owns(self, shard: int) -> bool:
        """Whether a shard is this worker's, by its absolute number: no restart or late start can skip one."""
        return shard % self.count == self.rank


def worker(text: str | None = None, environment: Mapping[str, str] = os.environ) -> Worker:
    """As `text` says ("2/8": the third of eight), else as `torchrun`, `accelerate launch` and Slurm arrays say.

    In the tasks of a Slurm array that each start several processes, all processes of all tasks are workers.

    Raises:
        DeepCacheError: a text or variables that make no worker.
    """
    local = _whole(environment, "LOCAL_RANK") or 0
    if text is not None:
        if not (found := re.fullmatch("([0-9]{1,9})/([0-9]{1,9})", text)):
            raise DeepCacheError(f"expected a worker as RANK/COUNT, such as 0/8, got {shown(text)}")
        return Worker(int(found[1]), int(found[2]), local)
    outer, inner = _array(environment), _launched(environment)
    return Worker(outer.rank * inner.count + inner.rank, outer.count * inner.count, local)


def _launched(environment: Mapping[str, str]) -> Worker:
    """By `torchrun` or `accelerate launch`."""
    rank, count = _whole(environment, "RANK"), _whole(environment, "WORLD_SIZE")
    if (rank is None) != (count is None):
        raise DeepCacheError("expected RANK and WORLD_SIZE, of which only one is set; unset it or give --worker")
    return Worker(rank or 0, 1 if count is None else count)


def _array(environment: Mapping[str, str]) -> Worker:
    """By Slurm, whose ids may begin anywhere and go in steps."""
    number, count = (_whole(environment, f"SLURM_ARRAY_TASK_{name}") for name in ("ID", "COUNT"))
    if number is None or count is None:
        return Worker()
    first, step = (_whole(environment, f"SLURM_ARRAY_TASK_{name}") for name in ("MIN", "STEP"))
    rank, rest = divmod(number - (first or 0), step or 1)
    if rest or not 0 <= rank < count:
        raise DeepCacheError(
            f"expected a Slurm array of evenly spaced ids, but {number} is none of {count} from {first or 0} in steps "
            f"of {step or 1}; give --worker RANK/COUNT"
        )
    return Worker(rank, count)


def _whole(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name)
    if text is not None and not re.fullmatch("[0-9]{1,18}", text):
        raise DeepCacheError(f"expected {name} to be a whole number, got {shown(text)}; unset it or give --worker")
    return None if text is None else int(text)
