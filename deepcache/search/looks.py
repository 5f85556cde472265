"""A first look at a model: images uncached, by plans of one cost and by fewer steps, and which of them to take."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from torch import Tensor

from deepcache.errors import DeepCacheError
from deepcache.metrics.fidelity import psnr_each
from deepcache.metrics.perceptual import MINI, Perceptual
from deepcache.models.embedded import SIZE, is_embedded, plan_path
from deepcache.models.registry import MODELS
from deepcache.plan import DEFAULT_ORDER, IDLE, CachePlan, require_whole, uniform
from deepcache.sampling.workload import Sampling, Workload, image_size_of
from deepcache.search.candidates import space_of

NEAR_DB = 30.0  # beyond it two images look alike side by side; below 20 dB the image is another one
_WARM_UP = 4  # steps, after which libraries have chosen their kernels


@dataclass(frozen=True)
class Way:
    """A way to sample: uncached, by a plan, or with fewer steps."""

    name: str
    how: str  # the line of Python that samples so
    sampling: Sampling
    macs: int  # of the U-Net for one image, without guidance; everything counted


@dataclass(frozen=True, eq=False)
class Look:
    """A look tells what a way costs, and how near its images are to the uncached images of the same seeds."""

    way: Way
    share: float  # of the uncached MACs, 0..1
    latency_s: float  # of one image, measured once
    psnr_db: list[float]  # of each seed
    perceptual: list[float] | None  # of each seed; None where no distance knows such images
    images: Tensor  # (B, 3, H, W) in 0..1

    @property
    def macs(self) -> int:
        """MACs of the U-Net for one image."""
        return self.way.macs

    @property
    def psnr_median_db(self) -> float:
        """The PSNR of the median seed."""
        return median(self.psnr_db)


def ways(workload: Workload, sampling: Sampling, interval: int, branch: int) -> list[Way]:
    """Return the uncached way, then ways of about the MACs of the plan of this interval and branch, fewer steps last.

    The plans are the paper's reuse, the same steps with predicted features (the default order), idle steps between as
    many full steps as cost the same, and the plan that is recommended for an embedded model, if there is one.
    """
    require_whole("interval", interval, at_least=2)
    known = plan_path(workload.model, str(sampling.scheduler), sampling.num_steps, workload.guidance_scale)
    recommended = CachePlan.load(known) if workload.model in MODELS and known.is_file() else None
    branches = (IDLE, branch) if recommended is None else (IDLE, branch, recommended.branch)
    with workload.under(sampling):
        space = space_of(workload, sampling.num_steps, branches=branches, orders=(DEFAULT_ORDER,), solvers=None)
    if branch not in space.branches:
        raise DeepCacheError(f"expected a branch that the U-Net has, got {branch}; take 0")
    calls = space.own_calls
    even = uniform(calls, interval, branch)
    most = space.macs(even)
    idle = next(n for n in range(1, calls + 1) if space.macs(uniform(calls, n, IDLE)) <= most)
    call = f"deepcache.cached(pipe, interval={interval}, branch={branch}"
    plans = {
        "reuse": (f"{call}, order=0)", uniform(calls, interval, branch, 0)),
        "predicted": (f"{call})", even),
        "idle steps": (f"deepcache.cached(pipe, interval={idle}, branch=-1)", uniform(calls, idle, IDLE)),
    }
    if recommended is not None and space.macs(recommended) <= most and recommended != plans["reuse"][1]:
        scale = "" if workload.guidance_scale is None else f", {workload.guidance_scale:g}"
        call = f'deepcache.models.recommended("{workload.model}", "{sampling.scheduler}", {sampling.num_steps}{scale})'
        plans["recommended"] = f"deepcache.cached(pipe, {call})", recommended
    found = [Way("uncached", f"pipe(..., num_inference_steps={sampling.num_steps})", sampling, space.whole)]
    for name, (how, plan) in plans.items():
        cached = Sampling(sampling.scheduler, sampling.num_steps, plan)
        found.append(Way(name, how, cached, space.macs(plan)))
    fewer = _fewer(workload, sampling, most // space.full)
    macs = workload.num_calls(fewer) * space.full
    return [*found, Way(f"{fewer.num_steps} steps", f"pipe(..., num_inference_steps={fewer.num_steps})", fewer, macs)]


def _fewer(workload: Workload, sampling: Sampling, most_calls: int) -> Sampling:
    """Return the sampling with the most steps whose U-Net calls are no more than these."""
    for num_steps in range(min(most_calls, sampling.num_steps), 0, -1):
        found = Sampling(sampling.scheduler, num_steps)
        if workload.num_calls(found) <= most_calls:
            return found
    return Sampling(sampling.scheduler, 1)


def looks(
    workload: Workload,
    found: Sequence[Way],
    seeds: Sequence[int],
    distance: Perceptual | None,
    *,
    progress: bool = True,
) -> Iterator[Look]:
    """Sample the seeds in each way, the first of which is uncached, and yield how near and how fast each is."""
    reference = None
    first = found[0].sampling
    _sampled(workload, Sampling(first.scheduler, min(_WARM_UP, first.num_steps)), seeds[:1], "warm-up", progress)
    for way in found:
        begin = time.perf_counter()
        images = _sampled(workload, way.sampling, seeds, way.name, progress)
        latency_s = (time.perf_counter() - begin) / len(seeds)
        reference = images if reference is None else reference
        apart = None if distance is None else distance.distance(images, reference).tolist()
        yield Look(way, way.macs / found[0].macs, latency_s, psnr_each(images, reference), apart, images)


def _sampled(workload: Workload, sampling: Sampling, seeds: Sequence[int], name: str, progress: bool) -> Tensor:  # noqa: FBT001
    with workload.under(sampling):
        return workload.sample(seeds, description=name, progress=progress, **sampling.arguments)


def known_distance(workload: Workload, distance: Perceptual) -> Perceptual | None:
    """Return a perceptual distance, or None where it is the embedded models' and the images are not theirs."""
    is_theirs = is_embedded(workload.pipe) and tuple(image_size_of(workload.pipe)) == SIZE
    return distance if distance.name != MINI or is_theirs else None


def best(found: Sequence[Look]) -> Look:
    """Return the look, other than the uncached first, that is the nearest in the median seed."""
    return max(found[1:], key=lambda look: (look.psnr_median_db, -look.macs))


def advice(found: Sequence[Look]) -> str:
    """Say in a sentence or two which way to take: the nearest, and how near it is."""
    nearest, fewer = best(found), found[-1]
    faster = {look.way: found[0].latency_s / look.latency_s for look in (nearest, fewer)}
    told = (
        f"a PSNR of {nearest.psnr_median_db:.1f} dB to the uncached image in the median, for {nearest.share:.0%} of "
        f"the U-Net's MACs, {faster[nearest.way]:.2f} times as fast here"
    )
    if nearest is fewer:
        text = f"Take fewer steps: {fewer.way.name} give {told}; no plan of this cost is nearer."
    else:
        name = nearest.way.name
        without = f"{fewer.way.name} give {fewer.psnr_median_db:.1f} dB, {faster[fewer.way]:.2f} times as fast"
        text = f"Take the plan \u201c{name}\u201d: it gives {told}; {without}."
    if nearest.psnr_median_db < NEAR_DB:
        text += f" Below {NEAR_DB:.0f} dB one sees the difference: try a smaller --interval."
    return text
