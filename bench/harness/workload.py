"""A model and its samples: one run a scheduler, step count, plan and seed, shared by all benches of a session."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from bench.harness.stored import stored_images
from deepcache.cache import steps
from deepcache.cache.caching import Cache, cached
from deepcache.costs.macs import Cost
from deepcache.metrics.clip_score import Clip, clip_scores
from deepcache.metrics.extractors import Extractor, Features, extract
from deepcache.metrics.images import Images
from deepcache.models.architectures import architecture
from deepcache.models.embedded import EMBEDDED
from deepcache.plan import CachePlan, Interval, quadratic, uniform
from deepcache.sampling.conditions import conditions_of
from deepcache.sampling.identity import weights_hash
from deepcache.sampling.memory import fitting
from deepcache.sampling.protocols import Protocol
from deepcache.sampling.samples import sample
from deepcache.sampling.schedulers import num_calls, scheduler

_KEPT = 1  # runs whose features stay in memory when their samples are in a store: the uncached one, and its own
SOLVERS = {"ddim": 1.0, "dpm-solver++": 0.5}  # and the share of the protocol's steps that does for each


@dataclass(frozen=True)
class Run:
    """What shapes the samples of a seed: the scheduler and its steps, the plan, or None for no cache.

    `disturbed` is the standard deviation of what is added to the start noise, which has 1; `zeroed` is whether every
    kept feature is replaced by zeros.
    """

    scheduler: str
    num_steps: int
    plan: CachePlan | Interval | None = None
    disturbed: float = 0.0
    zeroed: bool = False


@dataclass(frozen=True, eq=False)
class Samples:
    """Images (B, 3, H, W) in 0..1, their features, CLIP scores of prompts, and what the cache did, if one did.

    There is no cache of an uncached run, nor of samples that were all read from a store.
    """

    images: Images
    features: Features
    clip_scores: list[float]
    cache: Cache | None

    def first(self, count: int) -> Samples:
        """Of the first seeds."""
        return Samples(self.images[:count], self.features.first(count), self.clip_scores[:count], self.cache)


@dataclass(eq=False)
class Workload:
    """A pipeline, the extractors that measure it, and the way in which it is sampled.

    Random weights have no extractors; `stores` is the folder of the sample stores, None to keep samples in memory;
    `prompts_from` is the name of the file that the prompts are of; `is_halved` is whether batches are halved where the
    memory is too small.
    """

    model: str
    pipe: Any
    extractor: Extractor | None
    clip: Clip | None
    protocol: Protocol
    weights: str = "embedded"
    prompts: tuple[str, ...] | None = None
    prompts_from: str | None = None
    stores: Path | None = None
    is_halved: bool = True

    def __post_init__(self) -> None:
        self._config = self.pipe.scheduler.config
        self.conditions = conditions_of(self.pipe, prompts=self.prompts)
        self._samples: dict[tuple[Run, int], Samples] = {}
        self.warm: set[str] = set()  # solvers that ran before, of which time may be measured
        known = architecture(self.model)
        self.cost: Cost = known.cost()
        self.convention = known.convention

    @property
    def is_trained(self) -> bool:
        """Whether its images mean something."""
        return self.weights != "random"

    @property
    def is_mini(self) -> bool:
        """Whether it is an embedded model, which the thresholds on absolute scores are for."""
        return self.model in EMBEDDED

    @cached_property
    def weights_hash(self) -> str:
        """Of its networks, which no run changes."""
        return weights_hash(self.pipe)

    @property
    def device_name(self) -> str:
        """What runs it, as its maker calls it."""
        device = self.pipe.unet.device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)

    @property
    def dtype_name(self) -> str:
        return str(self.pipe.unet.dtype).removeprefix("torch.")

    @property
    def timed_images(self) -> int:
        """How many are sampled together where time is measured."""
        return min(self.protocol.timed_batch_size, self.protocol.batch_size, self.protocol.num_samples)

    def seeds(self, first: int = 0) -> range:
        """A block of seeds, as long as the protocol says."""
        return range(first, first + self.protocol.num_samples)

    def uncached(self, **changes: Any) -> Run:
        """The model's own scheduler and steps, without a cache."""
        return replace(Run(self.protocol.scheduler, self.protocol.num_steps), **changes)

    def uncached_by(self, solver: str) -> Run:
        """With one of `SOLVERS`, and the steps that it needs."""
        num_steps = int(self.protocol.num_steps * SOLVERS[solver])
        return self.uncached(scheduler=solver, num_steps=max(2, num_steps))

    def every(self, interval: int, branch: int | None = None, order: int = 0, **changes: Any) -> Run:
        """A uniform plan over the calls of `uncached(**changes)`, at the paper's branch for the model."""
        run = self.uncached(**changes)
        plan = uniform(self.num_calls(run), interval, self.protocol.branch if branch is None else branch, order)
        return replace(run, plan=plan)

    def around(self, center: float, power: float, interval: int, branch: int | None = None, **changes: Any) -> Run:
        """A quadratic plan with as many full steps as a uniform one; `center` is a share of the calls, 0..1."""
        run = self.uncached(**changes)
        calls = self.num_calls(run)
        branch = self.protocol.branch if branch is None else branch
        return replace(run, plan=quadratic(calls, ceil(calls / interval), center * calls, power, branch, order=0))

    def fewer(self, uncached: Run, cached: Run) -> Run:
        """No cache, but as many steps fewer that the MACs are those of `cached`, rounded to a whole step."""
        assert isinstance(cached.plan, CachePlan)
        share = self.cost.mean(cached.plan, self.convention) / self.cost.full(self.convention)
        return replace(uncached, num_steps=min(uncached.num_steps - 1, max(1, round(uncached.num_steps * share))))

    def num_calls(self, run: Run) -> int:
        """U-Net calls of a generation, which for some schedulers are not its steps."""
        return num_calls(run.scheduler, self._config, run.num_steps)

    def samples(self, run: Run, seeds: range, description: str = "sample") -> Samples:
        """Of the seeds, sampled once a session; a block that begins where a longer one did is its beginning."""
        known = self._samples.get((run, seeds.start))
        if known is not None and len(known.images) >= len(seeds):
            self._samples[run, seeds.start] = self._samples.pop((run, seeds.start))  # the last to be dropped
            return known.first(len(seeds))
        if self.stores is None or run.disturbed:
            images, cache = self.images(run, seeds, description=description)
        else:
            images, cache = stored_images(self, run, seeds, description)
            self._samples = dict([*self._samples.items()][-_KEPT:])
        prompts = self.conditions(seeds).get("prompt", [])
        scores = clip_scores(self.clip, images, prompts).tolist() if self.clip else []
        found = Samples(images, extract(self.extractor, images), scores, cache)
        self._samples[run, seeds.start] = found
        return found

    def unmeasured(self, run: Run, seeds: range) -> Any:
        """The images of `samples`, as `Images` that can be sliced; those in a store without their features."""
        if self.stores is None or run.disturbed:
            return self.samples(run, seeds).images
        return stored_images(self, run, seeds, "sample")[0]

    def pictures(self, run: Run, seeds: range, places: Iterable[int] | None = None) -> Tensor:
        """The images of `samples` all at once, (B, 3, H, W), or those in some places; no others are in memory."""
        images = self.unmeasured(run, seeds)
        parts = [images] if places is None else [images[place : place + 1] for place in places]
        return torch.cat([batch for part in parts for batch in part.split(self.protocol.batch_size)])

    def images(self, run: Run, seeds: range, **options: Any) -> tuple[Tensor, Cache | None]:
        """Sampled now, whatever was sampled before; `options` are `sample`'s."""
        size = min(options.pop("batch_size", self.protocol.batch_size), len(seeds))
        return fitting(
            lambda size: self.unhalved(run, seeds, batch_size=size, **options), size, is_halved=self.is_halved
        )

    def unhalved(self, run: Run, seeds: range, **options: Any) -> tuple[Tensor, Cache | None]:
        """`images` in batches of the `batch_size` among the options."""
        scale = self.protocol.guidance_scale
        own: dict[str, Any] = {} if scale is None else {"guidance_scale": scale}
        own |= {"num_inference_steps": run.num_steps, "disturbed": run.disturbed, "conditions": self.conditions}
        with self.caching(run) as cache:
            return sample(self.pipe, seeds, **{**own, **options}), cache

    @contextmanager
    def caching(self, run: Run) -> Iterator[Cache | None]:
        """Within the block the pipeline has the run's scheduler, and its U-Net the run's plan."""
        self.pipe.scheduler = scheduler(run.scheduler, self._config)
        with _zeroed() if run.zeroed else nullcontext():
            if run.plan is None:
                yield None
            else:
                with cached(self.pipe, run.plan) as cache:
                    yield cache


@contextmanager
def _zeroed() -> Iterator[None]:
    """Every shallow step gets zeros for the deep feature."""
    shallow: Callable[..., Any] = steps.shallow_forward

    def without(unet: Any, cut: Any, feature: Any, *args: Any, **kwargs: Any) -> Any:
        return shallow(unet, cut, tuple(torch.zeros_like(part) for part in feature), *args, **kwargs)

    with patch.object(steps, "shallow_forward", without):
        yield
