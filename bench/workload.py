"""A model, a scheduler and its steps: samples of seed blocks, and interleaved timings."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, PNDMScheduler
from torch import Tensor
from tqdm import tqdm

from deepcache.caching import Cache, cached
from deepcache.macs import Cost, cost
from deepcache.metrics.extractors import Features, extract
from deepcache.models.class_conditional import ClassConditionalPipeline
from deepcache.models.mini_features import MiniFeatures
from deepcache.plan import CachePlan
from deepcache.sampling import sample

SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "ddim": DDIMScheduler.from_config,
    "plms": lambda config: PNDMScheduler.from_config(config, skip_prk_steps=True),
    "dpm-solver++": lambda config: DPMSolverMultistepScheduler.from_config(config, algorithm_type="dpmsolver++"),
}


@dataclass(frozen=True)
class Samples:
    """Images (B, 3, H, W) in 0..1, their features, and what the cache did (None: uncached)."""

    images: Tensor
    features: Features
    cache: Cache | None


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
    """A class-conditional pipeline with guidance, and its samples, one run a seed block and plan."""

    pipe: ClassConditionalPipeline
    extractor: MiniFeatures
    model: str
    guidance_scale: float
    batch_size: int
    timed_batch_size: int = 16

    def __post_init__(self) -> None:
        self._config = self.pipe.scheduler.config
        self._scheduler = "ddim"
        self._samples: dict[tuple[str, int, range, CachePlan | None, float], Samples] = {}

    def use(self, scheduler: str) -> None:
        """Sample with this scheduler from now on, one of `SCHEDULERS`."""
        self._scheduler = scheduler
        self.pipe.scheduler = SCHEDULERS[scheduler](self._config)

    def num_calls(self, num_steps: int) -> int:
        """U-Net calls of a generation, which for some schedulers are not its steps."""
        self.pipe.scheduler.set_timesteps(num_steps)
        return len(self.pipe.scheduler.timesteps)

    def cost(self) -> Cost:
        """Of the U-Net on one latent."""
        config = self.pipe.unet.config
        latent = torch.empty(1, config.in_channels, config.sample_size, config.sample_size)
        return cost(self.pipe.unet, latent, 0, torch.empty(1, 1, config.cross_attention_dim))

    def samples(
        self, seeds: range, num_steps: int, plan: CachePlan | None, description: str, *, disturbed: float = 0.0
    ) -> Samples:
        """Of the seeds under a plan, or uncached; sampled once a session.

        `disturbed` is the standard deviation of what is added to the start noise, which has 1.
        """
        key = (self._scheduler, num_steps, seeds, plan, disturbed)
        if key not in self._samples:
            self._samples[key] = self._run(seeds, num_steps, plan, description, disturbed)
        return self._samples[key]

    def _run(self, seeds: range, num_steps: int, plan: CachePlan | None, description: str, disturbed: float) -> Samples:
        with self._caching(plan) as cache:
            images = sample(
                self.pipe,
                seeds,
                batch_size=self.batch_size,
                description=description,
                disturbed=disturbed,
                num_inference_steps=num_steps,
                guidance_scale=self.guidance_scale,
            )
        return Samples(images, extract(self.extractor, images), cache)

    def time(
        self, benchmark: Any, num_steps: int, plan: CachePlan | None, row_steps: int, rounds: int
    ) -> Timing | None:
        """Interleaved rounds: uncached as the benchmark's setup, cached (or fewer steps) as its target.

        None where pytest-benchmark is disabled, which then runs the target once.
        """
        timing = Timing()
        self._seconds(3)  # warm-up

        def uncached_round() -> None:
            timing.uncached_s.append(self._seconds(num_steps))
            bar.update()

        def cached_round() -> None:
            with self._caching(plan):
                timing.cached_s.append(self._seconds(row_steps))

        with tqdm(total=rounds, desc="timing", unit="round", disable=None, leave=False) as bar:
            benchmark.pedantic(cached_round, setup=uncached_round, rounds=rounds)
        return timing if benchmark.enabled else None

    def _seconds(self, num_steps: int) -> float:
        start = time.perf_counter()
        sample(
            self.pipe,
            range(self.timed_batch_size),
            batch_size=self.timed_batch_size,
            progress=False,
            num_inference_steps=num_steps,
            guidance_scale=self.guidance_scale,
        )
        return time.perf_counter() - start

    def _caching(self, plan: CachePlan | None) -> AbstractContextManager[Cache | None]:
        return nullcontext() if plan is None else cached(self.pipe, plan)
