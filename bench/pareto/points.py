"""This module samples and draws the points of cost against fidelity, for a model, a solver and its number of steps.

Some seeds choose and other seeds score: the choosing seeds decide which point of a curve is taken at a cost. All
records are measured on the scoring seeds. A point is not scored if a cheaper one of its curve is nearer, since nothing
could choose it.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import ceil
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

import deepcache
from bench.harness.measure import Measure, costs
from bench.harness.workload import Run, Samples, Workload
from bench.pareto.aims import ROUNDING, Point, chosen, psnr_of_mean
from deepcache.metrics.fidelity import psnr_each
from deepcache.metrics.statistics import Statistic, bootstrap
from deepcache.plan import DEFAULT_ORDER, IDLE, CachePlan, Order, highest, uniform
from deepcache.results.layout import Scalar
from deepcache.sampling.workload import Sampling
from deepcache.search.calibration import Calibration, calibrate, even
from deepcache.search.descent import descended_on_images
from deepcache.search.tuned import Tuned

SOLVERS = ("ddim", "plms", "dpm-solver++")
STEPS = (20, 25, 50)
INTERVALS = (2, 3, 5)
ORDERED_INTERVALS = INTERVALS[:2]  # of orders 1 and 2; beyond, no choice ever took them
SHARES = (0.7, 0.6, 0.5, 0.4, 0.33, 0.25, 0.15)  # of the uncached steps
EVEN = SHARES[2:]  # shares of the steps that are full in even idle plans
OPTIMAL = SHARES[:-1]  # the same for optimal idle plans; with fewer full steps, the first-order error misleads
CHEAP = SHARES[4:]  # shares at which plans are searched by the real error, and at which fewer steps have idle steps
FEWER, FEWER_INTERVALS = (0.7, 0.5), (2, 3)  # shares and intervals of predicted features over fewer steps, at branch 0
FEWER_IDLE = (0.7, 0.5, 0.35)  # shares of the steps that have idle steps among them
MIXED = ((4, 2), (6, 2), (6, 3))  # intervals of full steps, and of shallow steps between them
ORDERS: tuple[Order, ...] = (DEFAULT_ORDER, 2)  # of even idle plans
MOST_EVALUATIONS = 12  # plans that a search by the real error samples
STRONG = 7.5  # the guidance scale at which most users sample Stable Diffusion
STRONG_PANELS = (("ddim", 50), ("plms", 50), ("dpm-solver++", 20), ("dpm-solver++", 25))  # sampled at it, too
CHOOSING, SCORING = 8, 16  # how many seeds choose, and how many seeds after these score
SOLUTION = "ddim"
SOLVED_BY = 20  # times the protocol's steps; at most the thousand steps that the models were trained on
TUNED_SEEDS = range(1_000_000, 1_000_012)
CALIBRATED_SEEDS = TUNED_SEEDS[:8]
STYLES = {  # for each curve a colour that colour-blind readers tell apart (Okabe and Ito), and a marker
    "fewer steps": ("#000000", "x"),
    "order 0": ("#D55E00", "s"),
    "order 1": ("#56B4E9", "^"),
    "order 2": ("#0072B2", "v"),
    "order auto": ("#F0E442", "P"),
    "tuned": ("#009E73", "o"),
    "fewer steps, order 1": ("#7F7F7F", "+"),
    "idle": ("#CC79A7", "D"),
    "idle over fewer steps": ("#882255", "*"),
    "idle, searched": ("#332288", "p"),
    "mixed": ("#E69F00", "h"),
}
NAMES = {"order 0": "reuse (order 0)", "order auto": "order auto (branch 0)"}


Named = tuple[dict[str, Scalar], str, Run]  # the key of a point, its printed name and its run


@dataclass(frozen=True)
class Sampled(Point):
    """A point whose samples were made in this session."""

    run: Run


@dataclass(frozen=True, eq=False)
class Panel:
    """The points of a solver with a number of steps; the uncached run is one of them, with a share of 1."""

    workload: Workload
    uncached: Run
    seeds: range
    points: tuple[Sampled, ...]

    @property
    def name(self) -> str:
        strong = f", guidance {self.workload.guidance_scale:g}" if self.has_own_guidance else ""
        return f"{self.uncached.scheduler} {self.uncached.num_steps}{strong}"

    @property
    def has_own_guidance(self) -> bool:
        """Say whether the guidance scale differs from the protocol's."""
        return self.workload.guidance_scale != self.workload.protocol.guidance_scale

    @property
    def key(self) -> dict[str, Scalar]:
        guidance = {"guidance_scale": self.workload.guidance_scale} if self.has_own_guidance else {}
        return {"solver": self.uncached.scheduler, "uncached_steps": self.uncached.num_steps, **guidance}

    def on(self, *curves: str) -> list[Sampled]:
        """Return the points on some curves, the cheapest first."""
        return sorted((point for point in self.points if point.curve in curves), key=lambda point: point.share)


def steps_of(workload: Workload, num_steps: int) -> int:
    """Return the given number of steps, or the smaller number that `--num-steps` asks for."""
    return min(num_steps, workload.protocol.num_steps)


@cache
def panel(workload: Workload, solver: str, num_steps: int) -> Panel:
    """Sample and measure the points of a solver, once in a session."""
    uncached = workload.uncached(scheduler=solver, num_steps=num_steps)
    runs: dict[Run, Named] = {}
    first: Named = {"curve": "uncached"}, "uncached", uncached
    for named in (first, *_runs(workload, uncached)):
        runs.setdefault(named[-1], named)  # two curves may meet in a plan
    name = f"{workload.model}, {solver} {num_steps}"
    with tqdm(runs.values(), desc=f"{name}, choosing", unit="run", disable=None, leave=False) as bar:
        trials = [_trial(workload, uncached, *named) for named in bar]
    kept = [trial for trial in trials if _is_scored(trial, trials)]
    with tqdm(kept, desc=f"{name}, scoring", unit="run", disable=None, leave=False) as bar:
        points = tuple(_scored(workload, uncached, trial) for trial in bar)
    return Panel(workload, uncached, scoring(workload), points)


@cache
def strongly_guided(workload: Workload) -> Workload:
    """Return the same model at strong guidance."""
    return workload if workload.guidance_scale == STRONG else workload.guided(STRONG)


def choosing(workload: Workload) -> range:
    """Return the seeds that decide which point is taken."""
    return workload.seeds()[:CHOOSING]


def scoring(workload: Workload) -> range:
    """Return the seeds on which recorded metrics are measured."""
    return workload.seeds(CHOOSING)[:SCORING]


def _runs(workload: Workload, uncached: Run) -> Iterator[Named]:
    """Yield the points but the uncached one; curves may share a run."""
    key: dict[str, Scalar]
    own: dict[str, Any] = {"scheduler": uncached.scheduler, "num_steps": uncached.num_steps}
    for num_steps in _fewer(uncached, SHARES):
        yield {"curve": "fewer steps", "steps": num_steps}, f"{num_steps} steps", replace(uncached, num_steps=num_steps)
    for num_steps in _fewer(uncached, FEWER):
        for interval in FEWER_INTERVALS:
            run = workload.every(interval, 0, order=1, scheduler=uncached.scheduler, num_steps=num_steps)
            key = {"curve": "fewer steps, order 1", "steps": num_steps, "interval": interval}
            yield key, f"{num_steps} steps, order 1, N={interval}", run
    for order, intervals in {0: INTERVALS, 1: ORDERED_INTERVALS, 2: ORDERED_INTERVALS}.items():
        for interval in intervals:
            if ceil(uncached.num_steps / interval) > order:
                key = {"curve": f"order {order}", "interval": interval}
                yield key, f"order {order}, N={interval}", workload.every(interval, order=order, **own)
    for interval in INTERVALS:
        run = workload.every(interval, 0, order=DEFAULT_ORDER, **own)
        yield {"curve": "order auto", "interval": interval}, f"order auto, branch 0, N={interval}", run
    yield from _idle(workload, uncached)
    for interval, shallow_every in MIXED:
        plan = uniform(
            workload.num_calls(uncached), interval, 0, DEFAULT_ORDER, last_step_full=True, shallow_every=shallow_every
        )
        name = f"mixed, full every {interval}, shallow every {shallow_every}, last step full"
        yield {"curve": "mixed", **_plan_key(plan)}, name, replace(uncached, plan=plan)
    for trial in tuned(workload, uncached).front:
        plan = trial.candidate.plan
        yield {"curve": "tuned", **_plan_key(plan)}, f"tuned, {trial.candidate}", replace(uncached, plan=plan)


def _idle(workload: Workload, uncached: Run) -> Iterator[Named]:
    """Yield the points of idle plans: even and optimal plans, over all steps and over fewer, and searched plans."""
    calls = workload.num_calls(uncached)
    for count in _counts(calls, EVEN):
        first, last = even(calls, count)
        for steps, order in ((first, DEFAULT_ORDER), *((last, order) for order in ORDERS if count > highest(order))):
            end = ", last step full" if steps[-1] == calls - 1 else ""
            yield _named("idle", replace(uncached, plan=CachePlan(calls, steps, IDLE, order)), f"even{end}")
    for count in _counts(calls, OPTIMAL):
        plan = calibration(workload, uncached, IDLE).plan(count)
        yield _named("idle", replace(uncached, plan=plan), "optimal")
    for count in _counts(calls, CHEAP):
        starts = [*_starts(workload, uncached, count)]
        for run in starts:
            if run.num_steps < uncached.num_steps:
                yield _named("idle over fewer steps", run, f"even of {run.num_steps} steps, last step full")
        run = searched(workload, uncached, tuple(starts))
        yield _named("idle, searched", run, f"searched of {run.num_steps} steps")


def _named(curve: str, run: Run, kind: str) -> Named:
    plan = run.cache_plan
    key: dict[str, Scalar] = {"curve": curve, "steps": run.num_steps, **_plan_key(plan)}
    return key, f"idle, {kind}, {plan.num_full} full, order {plan.order}", run


def _counts(calls: int, shares: Sequence[float]) -> list[int]:
    """Return how many calls are full for each share of the MACs; two at least, for a first and a last full step."""
    counts = dict.fromkeys(max(2, int(share * calls + ROUNDING)) for share in shares)
    return [count for count in counts if count < calls]


def _starts(workload: Workload, uncached: Run, num_full: int) -> Iterator[Run]:
    """Yield even idle plans of order 1 that begin and end with a full step, over all steps and over fewer."""
    for num_steps in (uncached.num_steps, *_fewer(uncached, FEWER_IDLE)):
        run = replace(uncached, num_steps=num_steps)
        calls = workload.num_calls(run)
        if num_full < calls:
            yield replace(run, plan=CachePlan(calls, even(calls, num_full)[-1], IDLE, 1))


@cache
def searched(workload: Workload, uncached: Run, starts: tuple[Run, ...]) -> Run:
    """Search the best of some runs further by its real error, on seeds that nothing is measured on."""
    target = workload.images(uncached, CALIBRATED_SEEDS, progress=False)[0]

    def nearness(run: Run) -> float:
        return statistics.fmean(psnr_each(workload.images(run, CALIBRATED_SEEDS, progress=False)[0], target))

    start = max(starts, key=nearness)
    plan = descended_on_images(
        workload,
        Sampling(start.scheduler, start.num_steps),
        start.cache_plan,
        CALIBRATED_SEEDS,
        MOST_EVALUATIONS,
        target=Sampling(uncached.scheduler, uncached.num_steps),
    )
    return replace(start, plan=plan)


def _plan_key(plan: CachePlan) -> dict[str, Scalar]:
    steps = {"full_steps": plan.full_steps, "idle_steps": plan.idle_steps}
    shown = {name: " ".join(map(str, each)) for name, each in steps.items() if each}
    return {"branch": plan.branch, "order": plan.order, **shown}


def _fewer(uncached: Run, shares: Sequence[float]) -> list[int]:
    counts = dict.fromkeys(max(2, round(share * uncached.num_steps)) for share in shares)
    return [count for count in counts if count < uncached.num_steps]


@cache
def calibration(workload: Workload, uncached: Run, branch: int) -> Calibration:
    """Calibrate on seeds that nothing is measured on."""
    with workload.under(uncached):
        return calibrate(
            workload.pipe,
            branch=branch,
            seeds=CALIBRATED_SEEDS,
            conditions=workload.conditions,
            num_inference_steps=uncached.num_steps,
            **workload.arguments,
        )


@cache
def tuned(workload: Workload, uncached: Run) -> Tuned:
    """Tune to the MACs of reuse at N = 3, on seeds that nothing is measured on."""
    plan = workload.every(3, scheduler=uncached.scheduler, num_steps=uncached.num_steps).cache_plan
    with workload.under(uncached):
        return deepcache.tune(
            workload.pipe,
            speedup=workload.cost.ratio(plan),
            num_steps=uncached.num_steps,
            branches=(IDLE, 0),
            orders=(1, 2),
            seeds=TUNED_SEEDS,
            conditions=workload.conditions,
            batch_size=min(workload.protocol.batch_size, len(TUNED_SEEDS)),
            **workload.arguments,
        )


def solution(workload: Workload, seeds: range) -> Samples:
    """Return the samples of the solved differential equation: so many steps that more would change nothing."""
    steps_offset = workload.pipe.scheduler.config.get("steps_offset", 0)  # the last timestep may be at most 999
    num_steps = min(1000 - steps_offset, SOLVED_BY * workload.protocol.num_steps)
    run = workload.uncached(scheduler=SOLUTION, num_steps=num_steps)
    return workload.samples(run, seeds, f"{workload.model}, solution")


def _trial(workload: Workload, uncached: Run, key: dict[str, Scalar], name: str, run: Run) -> Sampled:
    """Return a point that is measured on the choosing seeds alone."""
    decided = _compared(workload, uncached, run, choosing(workload), name)
    means = {metric: statistics.fmean(each) for metric, each in decided.items()}
    return Sampled(key, name, _share(workload, run, uncached), {}, {}, means, run)


def _is_scored(trial: Sampled, trials: Sequence[Sampled]) -> bool:
    """Say whether a point may be taken at a cost, or stands in a table at its interval."""
    is_shown = trial.curve == "uncached" or "interval" in trial.key
    return is_shown or chosen(trials, (trial.curve,), trial.share) is trial


def _scored(workload: Workload, uncached: Run, trial: Sampled) -> Sampled:
    """Measure a point on the scoring seeds, too."""
    seeds, run, name = scoring(workload), trial.run, trial.name
    samples, base = (workload.samples(each, seeds, name) for each in (run, uncached))
    per_seed = _compared(workload, uncached, run, seeds, name)
    found = costs(workload, run, uncached, samples.cache) | {"share": trial.share}
    found |= _with_interval("solved_db", np.median, per_seed["solved_db"])
    if run != uncached:
        each = per_seed["psnr_db"]
        found |= Measure.change(samples, base)
        found |= _with_interval("psnr_db", psnr_of_mean, each) | _with_interval("psnr_median_db", np.median, each)
    if samples.clip_scores:
        found["clip_score"] = statistics.fmean(samples.clip_scores)
        lost = [before - after for before, after in zip(base.clip_scores, samples.clip_scores, strict=True)]
        found |= _with_interval("clip_loss", np.mean, lost) if run != uncached else {}
        per_seed["clip_score"] = samples.clip_scores
    return replace(trial, metrics=found, per_seed=per_seed)


def _compared(workload: Workload, uncached: Run, run: Run, seeds: range, name: str) -> dict[str, list[float]]:
    """Return the PSNR of each seed to the solution and, unless the run is the uncached one, to the uncached images."""
    images = workload.samples(run, seeds, name).images
    found = {"solved_db": psnr_each(images, solution(workload, seeds).images)}
    if run != uncached:
        found["psnr_db"] = psnr_each(images, workload.samples(uncached, seeds, name).images)
    return found


def _share(workload: Workload, run: Run, uncached: Run) -> float:
    """Return the share of a sample's uncached MACs, attention products included, as plans are tuned for."""
    calls = workload.num_calls(run) / workload.num_calls(uncached)
    return calls / workload.cost.ratio(run.plan) if isinstance(run.plan, CachePlan) else calls


def _with_interval(name: str, statistic: Statistic, values: Sequence[float]) -> dict[str, float]:
    """Return a statistic over the seeds, and the ends of its bootstrap interval, by their names in records."""
    each = np.asarray(values)
    low, high = bootstrap(statistic, each)
    return {name: float(statistic(each, axis=0)), f"{name}_low": low, f"{name}_high": high}


def figure(rows: Sequence[Sequence[Panel]], metric: str, title: str) -> Figure:
    """Draw the curves of a model as small panels: a row for each solver, a column for each number of steps.

    Args:
        rows: the panels of each solver.
        metric: what is drawn over the share of the uncached MACs, with its bootstrap interval as bars. Of each curve,
            the points are drawn that the choosing seeds prefer to all points that cost no more.
        title: the metric's title with its unit.
    """
    found = Figure(figsize=(11, 9), layout="constrained")
    axes = found.subplots(len(rows), max(map(len, rows)), squeeze=False, sharex=True, sharey=True)
    for line, panels in zip(axes, rows, strict=True):
        for axis, panel in zip(line, panels, strict=False):
            _draw(axis, panel, metric)
    found.supxlabel("MACs of a sample, share of the uncached")
    found.supylabel(title)
    handles, labels = axes[0][0].get_legend_handles_labels()
    found.legend(handles, labels, loc="outside upper center", ncols=6, frameon=False)
    return found


def _draw(axis: Any, panel: Panel, metric: str) -> None:
    for curve, (colour, marker) in STYLES.items():
        points = [each for each in panel.on(curve) if chosen(panel.points, (curve,), each.share) is each]
        if points:
            ys = [point.metrics[metric] for point in points]
            low = [y - point.metrics[f"{metric}_low"] for y, point in zip(ys, points, strict=True)]
            high = [point.metrics[f"{metric}_high"] - y for y, point in zip(ys, points, strict=True)]
            axis.errorbar(
                [point.share for point in points],
                ys,
                yerr=[[max(0, end) for end in ends] for ends in (low, high)],
                color=colour,
                marker=marker,
                markersize=5,
                linewidth=1.3,
                elinewidth=0.6,
                capsize=2,
                label=NAMES.get(curve, curve),
            )
    uncached = panel.on("uncached")[0].metrics.get(metric)
    if uncached is not None:
        axis.axhline(uncached, color="0.5", linewidth=0.8, linestyle="--")
    axis.set_title(panel.name, fontsize=10)
    axis.grid(color="0.92")
    axis.set_axisbelow(True)
