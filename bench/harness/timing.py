"""This module times a run and the uncached run in interleaved rounds, so that a slower machine slows both."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from bench.harness.workload import Run, Workload
from deepcache.cache.caching import Cache
from deepcache.errors import DeepCacheError
from deepcache.sampling.samples import is_out_of_memory


@dataclass
class Timing:
    """The times of interleaved rounds.

    Attributes:
        uncached_s: seconds of each uncached round; empty where the run itself is the uncached one.
        cached_s: seconds of each round of the run.
        cache: what the cache did in the last round.
    """

    uncached_s: list[float] = field(default_factory=list)
    cached_s: list[float] = field(default_factory=list)
    cache: Cache | None = None

    @property
    def speedup(self) -> float:
        """The median over rounds of uncached over cached seconds; 1 where the run itself is the uncached one."""
        uncached_s = self.uncached_s or self.cached_s
        return statistics.median(u / c for u, c in zip(uncached_s, self.cached_s, strict=True))


def interleaved(
    benchmark: Any, rounds: int, workload: Workload, run: Run, base: Workload, uncached: Run
) -> Timing | None:
    """Time rounds in turns: `uncached` of `base` as the benchmark's setup, `run` of `workload` as its target.

    Returns:
        The times; None where pytest-benchmark is disabled.
    """
    if not benchmark.enabled:
        return None
    timing = Timing()
    _warm_up(base, uncached.scheduler)
    _warm_up(workload, run.scheduler)

    def uncached_round() -> None:
        timing.uncached_s.append(seconds(base, uncached)[0])

    def cached_round() -> None:
        taken_s, timing.cache = seconds(workload, run)
        timing.cached_s.append(taken_s)
        bar.update()

    is_alone = base is workload and uncached == run
    with tqdm(total=rounds, desc="timing", unit="round", disable=None, leave=False) as bar:
        benchmark.pedantic(cached_round, setup=None if is_alone else uncached_round, rounds=rounds)
    return timing


def seconds(workload: Workload, run: Run) -> tuple[float, Cache | None]:
    """Return the seconds of one batch, until its images are back from the device, and what the cache did.

    Raises:
        DeepCacheError: the memory does not suffice for the batch.
    """
    count = workload.timed_images
    start = time.perf_counter()
    try:
        _, cache = workload.unhalved(run, range(count), batch_size=count, progress=False)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise DeepCacheError(
            f"not enough memory to time {count} samples together; take --batch-size below {count}, or --dtype fp16"
        ) from error
    return time.perf_counter() - start, cache


def _warm_up(workload: Workload, solver: str | None) -> None:
    if solver not in workload.warm:
        seconds(workload, Run(solver, 4))  # PNDM needs four steps
        workload.warm.add(solver)
