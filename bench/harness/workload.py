"""A bench's workload is the library's, with the extractors that measure it; the benches share its samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.harness.altered import with_shallow, zeroed
from deepcache.cache.caching import Cache
from deepcache.costs.macs import Cost
from deepcache.metrics.clip_score import Clip, clip_scores
from deepcache.metrics.extractors import Extractor, extract
from deepcache.metrics.statistics import Features
from deepcache.models.architectures import architecture
from deepcache.models.registry import EMBEDDED, Protocol
from deepcache.plan import DEFAULT_ORDER, IDLE, CachePlan, Order, quadratic, uniform
from deepcache.sampling import workload
from deepcache.sampling.conditions import conditions_of
from deepcache.sampling.filling import fill
from deepcache.sampling.manifest import LAYOUT, Manifest
from deepcache.sampling.samples import fitting
from deepcache.sampling.store import Store, StoredImages
from deepcache.unets.calls import Call
from deepcache.unets.registry import family_of

_KEPT = 1  # earlier runs whose features stay in memory when samples are in stores: the uncached run of a row
SOLVERS = {"ddim": 1.0, "dpm-solver++": 0.5}  # the share of the protocol's steps that suffices for each


@dataclass(frozen=True)
class Run(workload.Sampling):
    """A `Sampling` with what experiments change.

    Attributes:
        disturbed: standard deviation of what is added to the start noise, which has 1.
        zeroed: whether every kept feature is replaced by zeros.
    """

    disturbed: float = 0.0
    zeroed: bool = False

    @property
    def cache_plan(self) -> CachePlan:
        """The plan of a run that has one, and no `Interval`."""
        assert isinstance(self.plan, CachePlan)
        return self.plan

    @property
    def arguments(self) -> dict[str, Any]:
        return {**super().arguments, "disturbed": self.disturbed}


@dataclass(frozen=True, eq=False)
class Samples:
    """The samples of a run.

    Attributes:
        images: (B, 3, H, W) in 0..1.
        features: the extractor's features of the images.
        clip_scores: a score for each image of a prompted model.
        cache: what the cache did; None for an uncached run, and for samples that were all read from a store.
    """

    images: Tensor | StoredImages
    features: Features
    clip_scores: list[float]
    cache: Cache | None

    def first(self, count: int) -> Samples:
        """Return the samples of the first seeds."""
        return Samples(self.images[:count], self.features.first(count), self.clip_scores[:count], self.cache)


@dataclass(eq=False, kw_only=True)
class Workload(workload.Workload):
    """A workload with its protocol and the extractors that measure it.

    Attributes:
        protocol: steps, number of samples, branch and timed batch of the model's rows.
        extractor: what features are measured by; None for random weights.
        clip: what CLIP scores are measured by; None for a model without prompts.
        prompts_from: name of the file of the prompts.
        stores: folder of the sample stores; None to keep samples in memory.
    """

    protocol: Protocol
    extractor: Extractor | None = None
    clip: Clip | None = None
    prompts_from: str | None = None
    stores: Path | None = None
    is_halved: bool = True

    @classmethod
    def of(
        cls, model: str, pipe: Any, protocol: Protocol, *, prompts: tuple[str, ...] | None = None, **more: Any
    ) -> Workload:
        """Return a model's workload: its protocol gives batch size and guidance, `more` are other attributes."""
        scale = protocol.guidance_scale
        arguments = {} if scale is None else {"guidance_scale": scale}
        conditions = conditions_of(pipe, prompts=prompts)
        return cls(pipe, conditions, protocol.batch_size, arguments, model=model, protocol=protocol, **more)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._samples: dict[tuple[Run, int], Samples] = {}
        self.warm: set[str | None] = set()  # solvers that ran before, so that their time may be measured
        known = architecture(self.model)
        self.cost: Cost = known.cost()
        self.convention = known.convention

    @property
    def is_mini(self) -> bool:
        """True for an embedded model; thresholds on absolute scores bind these alone."""
        return self.model in EMBEDDED

    @property
    def device_name(self) -> str:
        """The name of the device by its maker."""
        device = self.pipe.unet.device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)

    @property
    def dtype_name(self) -> str:
        return str(self.pipe.unet.dtype).removeprefix("torch.")

    @property
    def timed_images(self) -> int:
        """How many images are sampled together where time is measured."""
        return min(self.protocol.timed_batch_size, self.batch_size, self.protocol.num_samples)

    def guided(self, guidance_scale: float) -> Workload:
        """Return the same model at another strength of guidance; the two share no samples."""
        return replace(self, arguments={**self.arguments, "guidance_scale": guidance_scale})

    def seeds(self, first: int = 0) -> range:
        """Return a block of seeds, as long as the protocol says."""
        return range(first, first + self.protocol.num_samples)

    def uncached(self, **changes: Any) -> Run:
        """Return the run of the model's own scheduler and steps without a cache."""
        return replace(Run(self.protocol.scheduler, self.protocol.num_steps), **changes)

    def uncached_by(self, solver: str) -> Run:
        """Return the uncached run of one of `SOLVERS`, with the steps that the solver needs."""
        num_steps = int(self.protocol.num_steps * SOLVERS[solver])
        return self.uncached(scheduler=solver, num_steps=max(2, num_steps))

    def every(self, interval: int, branch: int | None = None, order: Order = 0, **changes: Any) -> Run:
        """Return `uncached(**changes)` with a uniform plan, at the paper's branch for the model if none is given."""
        run = self.uncached(**changes)
        plan = uniform(self.num_calls(run), interval, self.protocol.branch if branch is None else branch, order)
        return replace(run, plan=plan)

    def idle(self, cached: Run) -> Run:
        """Return `cached` with idle steps in place of shallow ones, whose MACs pay for more full steps, evenly spaced.

        Its MACs are those of `cached`, rounded down to a whole full step.
        """
        plan = cached.cache_plan
        share = self.cost.mean(plan, self.convention) / self.cost.full(self.convention)
        num_full = int(plan.num_steps * share)
        steps = tuple(number * plan.num_steps // num_full for number in range(num_full))
        return replace(cached, plan=CachePlan(plan.num_steps, steps, IDLE, DEFAULT_ORDER))

    def around(self, center: float, power: float, interval: int, branch: int | None = None, **changes: Any) -> Run:
        """Return `uncached(**changes)` with a quadratic plan of as many full steps as a uniform plan has.

        Args:
            center: where full steps are dense, as a share of the calls, 0..1.
            power: the plan's power.
            interval: N of the uniform plan.
            branch: the paper's branch for the model if not given.
            **changes: attributes of the run.
        """
        run = self.uncached(**changes)
        calls = self.num_calls(run)
        branch = self.protocol.branch if branch is None else branch
        return replace(run, plan=quadratic(calls, ceil(calls / interval), center * calls, power, branch, order=0))

    def fewer(self, uncached: Run, cached: Run) -> Run:
        """Return an uncached run of so few steps that its MACs are those of `cached`, rounded to a whole step."""
        share = self.cost.mean(cached.cache_plan, self.convention) / self.cost.full(self.convention)
        return replace(uncached, num_steps=min(uncached.num_steps - 1, max(1, round(uncached.num_steps * share))))

    def unet_call(self, batch: int) -> Call:
        """Return the arguments of one U-Net call on a batch of random inputs; timestep and labels are 0."""
        unet, generator = self.pipe.unet, torch.Generator()

        def filled(value: Tensor) -> Tensor:
            if not value.is_floating_point():
                return value.new_zeros((batch, *value.shape[1:]), device=unet.device)
            noise = torch.randn(batch, *value.shape[1:], generator=generator.manual_seed(0))
            return noise.to(unet.device, unet.dtype)

        tokens = architecture(self.model).context_tokens or None
        example = family_of(unet).example(unet, context_tokens=tokens)
        return torch.utils._pytree.tree_map_only(Tensor, filled, example)

    def samples(self, run: Run, seeds: range, description: str = "sample") -> Samples:
        """Return the samples of seeds, sampled once a session; a shorter block is the beginning of a longer block."""
        known = self._samples.get((run, seeds.start))
        if known is not None and len(known.images) >= len(seeds):
            self._samples[run, seeds.start] = self._samples.pop((run, seeds.start))  # the last to be dropped
            return known.first(len(seeds))
        images: Tensor | StoredImages
        if self._is_stored(run):
            images, cache = self._stored(run, seeds, description)
            self._samples = dict([*self._samples.items()][-_KEPT:])
        else:
            images, cache = self.images(run, seeds, description=description)
        prompts = self.conditions(seeds).get("prompt", [])
        scores = clip_scores(self.clip, images, prompts).tolist() if self.clip else []
        assert self.extractor is not None
        found = Samples(images, extract(self.extractor, images), scores, cache)
        self._samples[run, seeds.start] = found
        return found

    def unmeasured(self, run: Run, seeds: range) -> Tensor | StoredImages:
        """Return the images of `samples`; stored images without their features."""
        return self._stored(run, seeds, "sample")[0] if self._is_stored(run) else self.samples(run, seeds).images

    def pictures(self, run: Run, seeds: range, places: Iterable[int] | None = None) -> Tensor:
        """Return the images of `samples` in one tensor, (B, 3, H, W), or only those in some places."""
        images = self.unmeasured(run, seeds)
        parts = [images] if places is None else [images[place : place + 1] for place in places]
        return torch.cat([batch for part in parts for batch in part.split(self.batch_size)])

    def images(self, run: Run, seeds: range, **options: Any) -> tuple[Tensor, Cache | None]:
        """Sample seeds now, whatever was sampled before; `options` are those of `samples.sample` and the pipeline."""
        size = min(options.pop("batch_size", self.batch_size), len(seeds))
        return fitting(
            lambda size: self.unhalved(run, seeds, batch_size=size, **options), size, is_halved=self.is_halved
        )

    def unhalved(self, run: Run, seeds: range, **options: Any) -> tuple[Tensor, Cache | None]:
        """Sample seeds now, in batches of the `batch_size` among the options whatever the memory is."""
        with self.under(run) as cache:
            return self.sample(seeds, **{**run.arguments, **options}), cache

    @contextmanager
    def under(self, sampling: workload.Sampling) -> Iterator[Cache | None]:
        is_zeroed = isinstance(sampling, Run) and sampling.zeroed
        with with_shallow(zeroed) if is_zeroed else nullcontext(), super().under(sampling) as cache:
            yield cache

    def manifest(self, sampling: workload.Sampling, **options: Any) -> Manifest:
        found = super().manifest(sampling, **options)
        is_zeroed = isinstance(sampling, Run) and sampling.zeroed
        return replace(found, conditions=f"{found.conditions}, features zeroed") if is_zeroed else found

    def _is_stored(self, run: Run) -> bool:
        return self.stores is not None and not run.disturbed

    def _stored(self, run: Run, seeds: range, description: str) -> tuple[StoredImages, Cache | None]:
        """Return the images of a run's store below `stores` after sampling what is missing, and what the cache did."""
        assert self.stores is not None
        # a store that is there decides how its samples are batched, unless another size was asked for
        follows = LAYOUT if self.is_halved else ("shard_size",)
        store = Store.below(self.stores, self.manifest(run), follows=follows)
        cache = fill(store, self, run, seeds, name=description)
        return StoredImages(store, seeds), cache if cache is not None and cache.generations else None
