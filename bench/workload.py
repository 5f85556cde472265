"""A model and its samples: one run a scheduler, step count, plan and seed, shared by all benches of a session."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from tqdm import tqdm

from deepcache import compiling
from deepcache.caching import Cache, cached
from deepcache.macs import Cost
from deepcache.metrics.clip_score import Clip, clip_scores
from deepcache.metrics.extractors import Features, extract
from deepcache.models.architectures import architecture
from deepcache.models.mini_features import MiniFeatures
from deepcache.plan import CachePlan, Interval, uniform
from deepcache.sampling import prompts_of, sample, scheduler


@dataclass(frozen=True)
class Run:
    """What shapes the samples of a seed: the scheduler and its steps, the plan, or None for no cache.

    `disturbed` is the standard deviation of what is added to the start noise, which has 1; `zeroed` is whether every
    kept feature is replaced by zeros.
    """

    scheduler: str
    num_steps: int
    plan: CachePlan | None = None
    disturbed: float = 0.0
    zeroed: bool = False


@dataclass(frozen=True)
class Samples:
    """Images (B, 3, H, W) in 0..1, their features, CLIP scores of prompts, and what the cache did (None: uncached)."""

    images: Tensor
    features: Features
    clip_scores: list[float]
    cache: Cache | None

    def first(self, count: int) -> Samples:
        """Of the first seeds."""
        return Samples(self.images[:count], self.features.first(count), self.clip_scores[:count], self.cache)


@dataclass
class Timing:
    """Seconds of interleaved rounds."""

    uncached_s: list[float] = field(default_factory=list)
    cached_s: list[float] = field(default_factory=list)

    @property
    def speedup(self) -> float:
        """Median of the ratios within a round: a machine that slows down slows both."""
        return statistics.median(u / c for u, c in zip(self.uncached_s, self.cached_s, strict=True))


@dataclass
class Workload:
    """A pipeline at its guidance, with the extractors that measure it, and the paper's way of sampling it."""

    model: str
    pipe: Any
    extractor: MiniFeatures
    clip: Clip | None
    scheduler: str
    num_steps: int
    branch: int
    guidance_scale: float | None
    batch_size: int
    timed_batch_size: int = 16

    def __post_init__(self) -> None:
        self._config = self.pipe.scheduler.config
        self._samples: dict[tuple[Run, int], Samples] = {}
        self._cost = architecture(self.model).cost()

    @property
    def cost(self) -> Cost:
        """Of the U-Net on one sample."""
        return self._cost

    def uncached(self, **changes: Any) -> Run:
        """The model's own scheduler and steps, without a cache."""
        return replace(Run(self.scheduler, self.num_steps), **changes)

    def every(self, interval: int, branch: int | None = None, order: int = 0, **changes: Any) -> Run:
        """A uniform plan over the calls of `uncached(**changes)`, at the paper's branch for the model."""
        run = self.uncached(**changes)
        plan = uniform(self.num_calls(run), interval, self.branch if branch is None else branch, order)
        return replace(run, plan=plan)

    def fewer(self, uncached: Run, cached: Run) -> Run:
        """No cache, but as many steps fewer that the MACs are those of `cached`, rounded to a whole step."""
        assert cached.plan is not None
        share = self.cost.mean(cached.plan) / self.cost.full()
        return replace(uncached, num_steps=min(uncached.num_steps - 1, max(1, round(uncached.num_steps * share))))

    def num_calls(self, run: Run) -> int:
        """U-Net calls of a generation, which for some schedulers are not its steps."""
        found = scheduler(run.scheduler, self._config)
        found.set_timesteps(run.num_steps)
        return len(found.timesteps)

    def samples(self, run: Run, seeds: range, description: str = "sample") -> Samples:
        """Of the seeds, sampled once a session; a block that begins where a longer one did is its beginning."""
        for (other, first), found in self._samples.items():
            if (other, first) == (run, seeds.start) and len(found.images) >= len(seeds):
                return found.first(len(seeds))
        images, cache = self.images(run, seeds, batch_size=self.batch_size, description=description)
        scores = clip_scores(self.clip, images, prompts_of(seeds)).tolist() if self.clip else []
        found = Samples(images, extract(self.extractor, images), scores, cache)
        self._samples[run, seeds.start] = found
        return found

    def images(self, run: Run, seeds: range, **options: Any) -> tuple[Tensor, Cache | None]:
        """Sampled now, whatever was sampled before; `options` are `sample`'s."""
        guidance = {} if self.guidance_scale is None else {"guidance_scale": self.guidance_scale}
        self.pipe.scheduler = scheduler(run.scheduler, self._config)
        arguments = {"num_inference_steps": run.num_steps, "disturbed": run.disturbed, **guidance, **options}
        with _zeroed() if run.zeroed else nullcontext(), self._caching(run.plan) as cache:
            return sample(self.pipe, seeds, **arguments), cache

    def time(self, benchmark: Any, uncached: Run, run: Run, rounds: int, base: Workload) -> Timing | None:
        """Interleaved rounds: `uncached` of `base` as the benchmark's setup, `run` as its target.

        None where pytest-benchmark is disabled.
        """
        if not benchmark.enabled:
            benchmark.pedantic(lambda: None)
            return None
        timing = Timing()
        self._seconds(replace(uncached, num_steps=4))  # warm-up; PNDM needs four

        def uncached_round() -> None:
            timing.uncached_s.append(base._seconds(uncached))
            bar.update()

        def cached_round() -> None:
            timing.cached_s.append(self._seconds(run))

        with tqdm(total=rounds, desc="timing", unit="round", disable=None, leave=False) as bar:
            benchmark.pedantic(cached_round, setup=uncached_round, rounds=rounds)
        return timing

    def _seconds(self, run: Run) -> float:
        start = time.perf_counter()
        self.images(run, range(self.timed_batch_size), batch_size=self.timed_batch_size, progress=False)
        return time.perf_counter() - start

    def _caching(self, plan: CachePlan | Interval | None) -> AbstractContextManager[Cache | None]:
        return nullcontext() if plan is None else cached(self.pipe, plan)


@contextmanager
def _zeroed() -> Iterator[None]:
    """Every shallow step gets zeros for the deep feature."""
    shallow: Callable[..., Any] = compiling.shallow_forward

    def without(unet: Any, cut: Any, feature: Any, *args: Any, **kwargs: Any) -> Any:
        return shallow(unet, cut, tuple(torch.zeros_like(part) for part in feature), *args, **kwargs)

    with patch.object(compiling, "shallow_forward", without):
        yield
