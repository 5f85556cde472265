"""Table 1: class-conditional generation, LDM-4-G on ImageNet in the paper, mini-ldm here.

Uniform and quadratic plans at several intervals, and what a user could do instead: fewer steps at the same MACs.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import ceil, isfinite
from typing import Any

import pytest
import thresholds
import torch
from workload import Timing, Workload

from deepcache.macs import PAPER
from deepcache.metrics.fidelity import as_asked, drift, quality
from deepcache.metrics.reference import Reference
from deepcache.plan import CachePlan, quadratic, uniform
from deepcache.sampling import labels_of

# The paper's centre and power over 250 steps (Tables 7 to 9); the centre scales with the number of steps.
QUADRATIC = {10: (110 / 250, 1.2), 20: (120 / 250, 1.2)}


@dataclass(frozen=True)
class Row:
    """A method: "uncached", "uniform", "quadratic", or "fewer steps" at the MACs of a uniform interval."""

    kind: str
    interval: int = 1

    def plan(self, num_calls: int, branch: int) -> CachePlan | None:
        if self.kind == "uniform":
            return uniform(num_calls, self.interval, branch)
        if self.kind == "quadratic":
            center, power = QUADRATIC[self.interval]
            return quadratic(num_calls, ceil(num_calls / self.interval), center * num_calls, power, branch)
        return None

    def label(self, num_steps: int, branch: int, scheduler: str, first_seed: int) -> str:
        name = {
            "uncached": "uncached",
            "uniform": f"uniform N={self.interval}",
            "quadratic": f"quadratic N={self.interval}",
            "fewer steps": f"{num_steps} steps (MACs of N={self.interval})",
        }[self.kind]
        extras = [f"branch {branch}"] * bool(branch) + [scheduler] * (scheduler != "ddim")
        return ", ".join([name, *extras, *[f"seeds from {first_seed}"] * bool(first_seed)])

    def __str__(self) -> str:
        return self.kind.replace(" ", "-") + (f"-N{self.interval}" if self.interval > 1 else "")


UNIFORM = [Row("uniform", n) for n in (2, 3, 5, 10, 20)]
ROWS = [
    Row("uncached"),
    *UNIFORM,
    *(Row("quadratic", n) for n in QUADRATIC),
    *(Row("fewer steps", n) for n in (3, 5)),
]
FOUND: dict[tuple[Any, ...], dict[CachePlan, dict[str, float]]] = {}  # (branch, scheduler, seed): plan: drift


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_table1(
    benchmark: Any,
    record: Callable[..., None],
    mini_ldm: Workload,
    reference: Reference,
    row: Row,
    branch: int,
    scheduler: str,
    first_seed: int,
    seeds: range,
    num_steps: int,
    rounds: int,
) -> None:
    mini_ldm.use(scheduler)
    num_calls = mini_ldm.num_calls(num_steps)
    plan, cost = row.plan(num_calls, branch), mini_ldm.cost()
    steps = num_steps
    if row.kind == "fewer steps":
        share = cost.mean(uniform(num_calls, row.interval, branch)) / cost.full()
        steps = min(num_steps - 1, max(1, round(num_steps * share)))
    label = row.label(steps, branch, scheduler, first_seed)
    benchmark.group = "table1"
    timing = mini_ldm.time(benchmark, num_steps, plan, steps, rounds)
    uncached = mini_ldm.samples(seeds, num_steps, None, f"uncached, {num_steps} steps")
    samples = uncached if row.kind == "uncached" else mini_ldm.samples(seeds, steps, plan, label)
    change = {} if samples is uncached else drift(samples.features, uncached.features, samples.images, uncached.images)
    row_calls = mini_ldm.num_calls(steps)
    macs = cost.full() * row_calls / num_calls if samples.cache is None else samples.cache.generations[0].macs
    metrics = {"macs": macs, **_speed(row, timing, mini_ldm.timed_batch_size), **quality(samples.features, reference)}
    record(
        experiment="table1",
        row=label,
        settings={
            "model": mini_ldm.model,
            "weights": "embedded",
            "extractor": "mini-features",
            "device": "cpu",
            "num_threads": torch.get_num_threads(),
            "scheduler": scheduler,
            "uncached_steps": num_steps,
            "num_steps": steps,
            "guidance_scale": mini_ldm.guidance_scale,
            "method": row.kind,
            "interval": row.interval,
            "branch": branch,
            "num_full": row_calls if plan is None else plan.num_full,
            "full_steps": "all" if plan is None else " ".join(map(str, plan.full_steps)),
            "first_seed": first_seed,
            "num_samples": len(seeds),
            "macs_convention": f"{PAPER}, mean over the uncached run's {num_calls} steps",
            "timing": f"median of {rounds} interleaved rounds of {mini_ldm.timed_batch_size} images, decoding included",
        },
        metrics={name: value for name, value in {**metrics, **change}.items() if isfinite(value)},
    )

    if plan is not None:
        assert samples.cache is not None
        assert {g.full_steps for g in samples.cache.generations} == {plan.full_steps}
        FOUND.setdefault((branch, scheduler, first_seed), {}).update({plan: change} if row in UNIFORM else {})
        if timing is not None:
            assert timing.speedup >= thresholds.SPEEDUP_OF_MACS_RATIO * cost.ratio(plan)
    if plan is not None and branch == 0:
        full, shallow = thresholds.MINI_LDM_FULL_MACS, thresholds.MINI_LDM_SHALLOW_MACS
        assert macs == round(shallow + (full - shallow) * Fraction(plan.num_full, num_calls))
    if row.kind == "uncached":
        asked = labels_of(seeds, samples.features.probabilities.shape[1])
        assert as_asked(samples.features, asked) >= thresholds.samples_as_asked(len(seeds))
    if row == Row("uniform", 2) and num_steps >= thresholds.ENOUGH_STEPS:
        assert change["psnr_db"] >= thresholds.PSNR_DB_AT_INTERVAL_2


def test_table1_fidelity_falls_with_the_interval(
    branch: int, scheduler: str, first_seed: int, num_steps: int, seeds: range
) -> None:
    found = FOUND.get((branch, scheduler, first_seed), {})
    if len(found) < 2 or num_steps < thresholds.ENOUGH_STEPS or len(seeds) < thresholds.ENOUGH_SAMPLES:
        pytest.skip("needs two uniform rows in this run, over enough steps and samples (bench/thresholds.py)")
    drifts = [found[plan] for plan in sorted(found, key=lambda plan: -plan.num_full)]
    for nearer, farther in pairwise(drifts):
        assert nearer["psnr_db"] - farther["psnr_db"] > thresholds.PSNR_FALLS_BY_AT_LEAST_DB
        assert farther["fid_drift"] - nearer["fid_drift"] > thresholds.FID_DRIFT_GROWS_BY_AT_LEAST


def _speed(row: Row, timing: Timing | None, batch_size: int) -> dict[str, float]:
    if timing is None:
        return {}
    latency_s = statistics.median(timing.cached_s)
    speedup = 1.0 if row.kind == "uncached" else timing.speedup
    return {"latency_s": latency_s, "throughput": batch_size / latency_s, "speedup": speedup}
