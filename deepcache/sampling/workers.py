"""Which of many processes this is, by the variables of its launcher, and how far it is; workers never communicate."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType

from tqdm import tqdm

from deepcache.errors import DeepCacheError, shown
from deepcache.plan import require_whole

EVERY_S = 30.0  # between two lines of progress where there is no terminal


@dataclass(frozen=True)
class Worker:
    """One of several processes that fill a store.

    Attributes:
        rank: number of this worker, 0 .. `count` - 1.
        count: how many workers there are.
        local_rank: number of this worker among those on the same machine.

    Raises:
        DeepCacheError: `rank` or `count` is out of range.
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
        """Return whether this worker samples a shard; that depends on the shard's absolute number alone, so that no
        restart or late start skips a shard.
        """
        return shard % self.count == self.rank


class Progress:
    """Shows on stderr how many images a worker has made: a bar on a terminal, else a line every 30 seconds.

    Args:
        total: number of images to make.
        name: text before the bar.
        position: line of the bar among those on the same terminal.
    """

    def __init__(self, total: int, name: str, position: int = 0) -> None:
        self._bar = tqdm(total=total, desc=name, unit="image", position=position, disable=None, leave=False)
        self._total, self._name, self._done = total, name, 0
        self._begin = self._told = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._bar.close()

    def advance(self, count: int) -> None:
        """Count some more images as done."""
        self._bar.update(count)
        self._done += count
        now = time.monotonic()
        if self._bar.disable and now - self._told >= EVERY_S:
            self._told = now
            rate = self._done / (now - self._begin)
            self.say(f"{self._name}: {self._done} of {self._total} images, {rate:.3g} images/s")

    def say(self, line: str) -> None:
        """Write a line above the bar."""
        tqdm.write(line, file=sys.stderr)


def worker(text: str | None = None, environment: Mapping[str, str] = os.environ) -> Worker:
    """Return the worker that this process is.

    In the tasks of a Slurm array that each start several processes, all processes of all tasks are workers.

    Args:
        text: RANK/COUNT, such as "2/8" for the third of eight; if not given, the variables of `torchrun`, `accelerate
            launch` and Slurm arrays count.
        environment: the process's variables.

    Raises:
        DeepCacheError: the text or the variables name no worker.
    """
    local = _whole(environment, "LOCAL_RANK") or 0
    if text is not None:
        if not (found := re.fullmatch("([0-9]{1,9})/([0-9]{1,9})", text)):
            raise DeepCacheError(f"expected a worker as RANK/COUNT, such as 0/8, got {shown(text)}")
        return Worker(int(found[1]), int(found[2]), local)
    outer, inner = _array(environment), _launched(environment)
    return Worker(outer.rank * inner.count + inner.rank, outer.count * inner.count, local)


def _launched(environment: Mapping[str, str]) -> Worker:
    """Return the worker that `torchrun` or `accelerate launch` started."""
    rank, count = _whole(environment, "RANK"), _whole(environment, "WORLD_SIZE")
    if (rank is None) != (count is None):
        raise DeepCacheError("expected RANK and WORLD_SIZE, of which only one is set; unset it or give --worker")
    return Worker(rank or 0, 1 if count is None else count)


def _array(environment: Mapping[str, str]) -> Worker:
    """Return the worker that a Slurm array started; its ids may begin anywhere and go in steps."""
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
