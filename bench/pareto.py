"""Cost against fidelity: for a model, a solver and its steps, the points of every curve, and what they are held to."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import ceil
from typing import Any

import numpy as np
from measure import Measure, costs
from tqdm import tqdm
from workload import Run, Samples, Workload

import deepcache
from deepcache.metrics.fidelity import PSNR_AT_MOST_DB, psnr_each
from deepcache.sampling import scheduler
from deepcache.search import Calibration, calibrate
from deepcache.tuning import Tuned

SOLVERS = ("ddim", "plms", "dpm-solver++")
STEPS = (20, 25, 50)
INTERVALS = (2, 3, 5, 10)
SHARES = (0.7, 0.6, 0.5, 0.4, 0.33, 0.25)  # of the uncached steps
NUM_SEEDS = 16
SOLVED_SEEDS = 8  # of them, for which the solution is worked out: a thousand steps each
SOLUTION = "ddim"
SOLVED_BY = 20  # times the protocol's steps, at most the thousand that the models were trained on
TUNED_SEEDS = range(1_000_000, 1_000_018)
CALIBRATED_SEEDS = TUNED_SEEDS[:8]
PREDICTED = ("order 1", "order 2", "optimal", "tuned")
CONFIDENCE = 0.95
_RESAMPLES = 2000


@dataclass(frozen=True)
class Point:
    """A run on its curve: the share of the uncached MACs, and what was measured."""

    curve: str
    name: str
    run: Run
    share: float
    metrics: dict[str, Any]
    per_seed: dict[str, list[float]]


@dataclass(frozen=True, eq=False)
class Panel:
    """The points of a solver at its steps; `uncached` is among them, as the one that costs all."""

    workload: Workload
    uncached: Run
    seeds: range
    points: tuple[Point, ...]

    @property
    def name(self) -> str:
        return f"{self.uncached.scheduler} {self.uncached.num_steps}"

    def on(self, *curves: str) -> list[Point]:
        """From the cheapest."""
        return sorted((point for point in self.points if point.curve in curves), key=lambda point: point.share)


def steps_of(workload: Workload, num_steps: int) -> int:
    """As many, or as few as `--num-steps` asks for."""
    return min(num_steps, workload.protocol.num_steps)


@cache
def panel(workload: Workload, solver: str, num_steps: int) -> Panel:
    """Sampled and measured once a session."""
    uncached = workload.uncached(scheduler=solver, num_steps=num_steps)
    seeds = workload.seeds()[:NUM_SEEDS]
    runs = [("uncached", "uncached", uncached), *_runs(workload, uncached)]
    with tqdm(runs, desc=f"{workload.model}, {solver} {num_steps}", unit="run", disable=None, leave=False) as bar:
        points = tuple(_point(workload, uncached, seeds, *named) for named in bar)
    return Panel(workload, uncached, seeds, points)


def _runs(workload: Workload, uncached: Run) -> Iterator[tuple[str, str, Run]]:
    """Curve, name and run, each run once."""
    own = {"scheduler": uncached.scheduler, "num_steps": uncached.num_steps}
    for share in SHARES:
        num_steps = max(2, round(share * uncached.num_steps))
        if num_steps < uncached.num_steps:
            yield "fewer steps", f"{num_steps} steps", replace(uncached, num_steps=num_steps)
    for order in (0, 1, 2):
        for interval in INTERVALS:
            if ceil(uncached.num_steps / interval) > order:
                yield f"order {order}", f"order {order}, N={interval}", workload.every(interval, order=order, **own)
    for interval in INTERVALS:
        plan = calibration(workload, uncached).plan(ceil(workload.num_calls(uncached) / interval))
        yield "optimal", f"optimal, {plan.num_full} full, order {plan.order}", replace(uncached, plan=plan)
    for trial in tuned(workload, uncached).front:
        yield "tuned", f"tuned, {trial.candidate}", replace(uncached, plan=trial.candidate.plan)


@cache
def calibration(workload: Workload, uncached: Run) -> Calibration:
    """At the model's branch, from seeds that nothing is measured on."""
    workload.pipe.scheduler = scheduler(uncached.scheduler, workload.pipe.scheduler.config)
    return calibrate(
        workload.pipe,
        branch=workload.protocol.branch,
        seeds=CALIBRATED_SEEDS,
        conditions=workload.conditions,
        num_inference_steps=uncached.num_steps,
        **_guidance(workload),
    )


@cache
def tuned(workload: Workload, uncached: Run) -> Tuned:
    """For the MACs of reuse at N = 3, from seeds that nothing is measured on."""
    plan = workload.every(3, scheduler=uncached.scheduler, num_steps=uncached.num_steps).plan
    assert isinstance(plan, deepcache.CachePlan)
    workload.pipe.scheduler = scheduler(uncached.scheduler, workload.pipe.scheduler.config)
    return deepcache.tune(
        workload.pipe,
        speedup=workload.cost.ratio(plan),
        num_steps=uncached.num_steps,
        branches=sorted({0, workload.protocol.branch}),
        orders=(1, 2),
        seeds=TUNED_SEEDS,
        conditions=workload.conditions,
        batch_size=min(workload.protocol.batch_size, len(TUNED_SEEDS)),
        **_guidance(workload),
    )


def _guidance(workload: Workload) -> dict[str, float]:
    scale = workload.protocol.guidance_scale
    return {} if scale is None else {"guidance_scale": scale}


def solution(workload: Workload, seeds: range) -> Samples:
    """Of the first seeds, the samples of the converged differential equation."""
    steps_offset = workload.pipe.scheduler.config.get("steps_offset", 0)  # the last timestep is 999
    num_steps = min(1000 - steps_offset, SOLVED_BY * workload.protocol.num_steps)
    run = workload.uncached(scheduler=SOLUTION, num_steps=num_steps)
    return workload.samples(run, seeds[:SOLVED_SEEDS], f"{workload.model}, solution")


def _point(workload: Workload, uncached: Run, seeds: range, curve: str, name: str, run: Run) -> Point:
    samples, base = (workload.samples(each, seeds, name) for each in (run, uncached))
    solved = solution(workload, seeds)
    found = costs(workload, run, uncached, samples.cache)
    share = found["macs"] / workload.cost.full(workload.convention)
    to_solution = psnr_each(samples.images[: len(solved.images)], solved.images)
    found |= {"share": share} | _with_interval("solved_db", np.median, to_solution)
    per_seed = {"solved_db": to_solution}
    if run != uncached:
        each = psnr_each(samples.images, base.images)
        found |= Measure.change(samples, base)
        found |= _with_interval("psnr_db", _psnr_of_mean, each) | _with_interval("psnr_median_db", np.median, each)
        per_seed["psnr_db"] = each
    if samples.clip_scores:
        found["clip_score"] = statistics.fmean(samples.clip_scores)
        lost = [before - after for before, after in zip(base.clip_scores, samples.clip_scores, strict=True)]
        found |= _with_interval("clip_loss", np.mean, lost) if run != uncached else {}
        per_seed["clip_score"] = samples.clip_scores
    return Point(curve, name, run, share, found, per_seed)


def _psnr_of_mean(each: np.ndarray, axis: int) -> np.ndarray:
    """Of the mean squared error."""
    return -10 * np.log10((10 ** (-each / 10)).mean(axis=axis))


def _with_interval(name: str, statistic: Callable[..., Any], values: Sequence[float]) -> dict[str, float]:
    """Its value over the seeds, and the ends of a percentile bootstrap over them, from a fixed seed."""
    each = np.asarray(values)
    drawn = np.random.default_rng(0).integers(each.size, size=(_RESAMPLES, each.size))
    low, high = np.quantile(statistic(each[drawn], axis=1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return {name: float(statistic(each, axis=0)), f"{name}_low": float(low), f"{name}_high": float(high)}


def best_within(points: Sequence[Point], share: float, metric: str) -> float | None:
    """The best of those that cost no more; None where nothing does."""
    within = [point.metrics[metric] for point in points if point.share <= share * (1 + 1e-9)]
    return max(within, default=None)


def gain_at_equal_macs(found: Panel, interval: int, metric: str) -> float | None:
    """The best prediction's over reuse's at N = `interval`, in dB, of what costs no more."""
    reuse = next((p for p in found.on("order 0") if p.run == _reuse(found, interval)), None)
    if reuse is None or reuse.metrics[metric] >= PSNR_AT_MOST_DB:
        return None
    best = best_within(found.on(*PREDICTED), reuse.share, metric)
    return None if best is None else best - reuse.metrics[metric]


def least_lead_over_fewer_steps(found: Panel, metric: str, low: float = 0.25, high: float = 0.7) -> float | None:
    """The best prediction's over fewer steps', in dB, at the cost where it is least, of those from `low` to `high`.

    Both curves are steps: at a cost, the best of what costs no more. Where nothing fits, nothing is compared.
    """
    leads = []
    for share in np.linspace(low, high, 46):
        predicted = best_within(found.on(*PREDICTED), share, metric)
        fewer = best_within(found.on("fewer steps"), share, metric)
        if predicted is not None and fewer is not None:
            leads.append(predicted - fewer)
    return min(leads, default=None)


def share_of_reuse(found: Panel, metric: str, interval: int = 3) -> float | None:
    """Of reuse's MACs at N = `interval`, what the cheapest prediction needs to be as near."""
    reuse = next((p for p in found.on("order 0") if p.run == _reuse(found, interval)), None)
    if reuse is None:
        return None
    equal = [p.share for p in found.on(*PREDICTED) if p.metrics[metric] >= reuse.metrics[metric]]
    return min(equal) / reuse.share if equal else None


def _reuse(found: Panel, interval: int) -> Run:
    own = {"scheduler": found.uncached.scheduler, "num_steps": found.uncached.num_steps}
    return found.workload.every(interval, **own)
