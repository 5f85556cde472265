"""Table 1: class-conditional generation, LDM-4-G on ImageNet in the paper, mini-ldm here.

Uniform and quadratic plans at several intervals, predicted instead of reused features, and what a user could do
instead: fewer steps at the same MACs.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import pytest

from bench.harness import thresholds
from bench.harness.laws import is_judged, skip_unless_judged
from bench.harness.measure import Measure
from bench.harness.workload import Run, Workload
from deepcache.metrics.fidelity import as_asked
from deepcache.sampling.conditions import labels_of

# The paper's centre and power over 250 steps (Tables 7 to 9); the centre scales with the number of steps.
QUADRATIC = {10: (110 / 250, 1.2), 20: (120 / 250, 1.2)}


@dataclass(frozen=True)
class Row:
    """A method: "uncached", "uniform", "quadratic", or "fewer steps" at the MACs of a uniform interval."""

    kind: str
    interval: int = 1
    order: int = 0

    def run(self, workload: Workload, uncached: Run, branch: int) -> Run:
        if self.kind == "uniform":
            return workload.every(
                self.interval, branch, self.order, scheduler=uncached.scheduler, num_steps=uncached.num_steps
            )
        if self.kind == "quadratic":
            return workload.around(
                *QUADRATIC[self.interval],
                self.interval,
                branch,
                scheduler=uncached.scheduler,
                num_steps=uncached.num_steps,
            )
        if self.kind == "fewer steps":
            return workload.fewer(uncached, Row("uniform", self.interval).run(workload, uncached, branch))
        return uncached

    def label(self, run: Run, branch: int, scheduler: str, first_seed: int) -> str:
        name = {
            "uncached": "uncached",
            "uniform": f"uniform N={self.interval}",
            "quadratic": f"quadratic N={self.interval}",
            "fewer steps": f"{run.num_steps} steps (MACs of N={self.interval})",
        }[self.kind]
        extras = [f"order {self.order}"] * bool(self.order) + [f"branch {branch}"] * bool(branch)
        extras += [scheduler] * (scheduler != "ddim") + [f"seeds from {first_seed}"] * bool(first_seed)
        return ", ".join([name, *extras])

    def __str__(self) -> str:
        order = f"-order{self.order}" if self.order else ""
        return self.kind.replace(" ", "-") + (f"-N{self.interval}" if self.interval > 1 else "") + order


UNIFORM = [Row("uniform", n) for n in (2, 3, 5, 10, 20)]
ROWS = [
    Row("uncached"),
    *UNIFORM,
    *(Row("uniform", n, order) for order in (1, 2) for n in (2, 3, 5, 10)),
    *(Row("quadratic", n) for n in QUADRATIC),
    *(Row("fewer steps", n) for n in (2, 3, 5, 10)),
]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_table1(
    measure: Measure,
    class_conditional: Workload,
    row: Row,
    branch: int,
    scheduler: str,
    first_seed: int,
) -> None:
    seeds, cost = class_conditional.seeds(first_seed), class_conditional.cost
    uncached = class_conditional.uncached(scheduler=scheduler)
    run = row.run(class_conditional, uncached, branch)
    found = measure(
        "table1",
        row.label(run, branch, scheduler, first_seed),
        class_conditional,
        run,
        uncached,
        seeds,
        timed=row.kind != "fewer steps" and (row.order == 0 or row.interval == 5),  # an order costs the same at any N
        with_quality=True,
        settings={"curve": f"order {row.order}" if row.kind == "uniform" else row.kind, "interval": row.interval},
    )

    judged = is_judged(class_conditional)
    if run.plan is not None and found.timing is not None and judged and thresholds.macs_rule_time(class_conditional):
        assert found.timing.speedup >= thresholds.SPEEDUP_OF_MACS_RATIO * cost.ratio(run.plan)
    if run.plan is not None and branch == 0 and class_conditional.is_mini:
        full, shallow = thresholds.MINI_LDM_FULL_MACS, thresholds.MINI_LDM_SHALLOW_MACS
        share = Fraction(run.plan.num_full, run.plan.num_steps)
        assert found.metrics["macs"] == round(shallow + (full - shallow) * share)
    if row.kind == "uncached" and judged:
        asked = labels_of(seeds, found.samples.features.probabilities.shape[1])
        assert as_asked(found.samples.features, asked) >= thresholds.samples_as_asked(len(seeds))
    if row == Row("uniform", 2) and judged:
        assert found.metrics["psnr_median_db"] >= thresholds.SAME_IMAGE_DB


@pytest.mark.shows_images
def test_table1_fidelity_falls_with_the_interval(
    class_conditional: Workload, branch: int, scheduler: str, first_seed: int
) -> None:
    seeds, uncached = class_conditional.seeds(first_seed), class_conditional.uncached(scheduler=scheduler)
    skip_unless_judged(class_conditional)
    base = class_conditional.samples(uncached, seeds)
    rows = [class_conditional.samples(row.run(class_conditional, uncached, branch), seeds, str(row)) for row in UNIFORM]
    for nearer, farther in pairwise(Measure.change(samples, base) for samples in rows):
        assert nearer["psnr_median_db"] - farther["psnr_median_db"] > thresholds.PSNR_FALLS_BY_AT_LEAST_DB
        assert farther["fid_drift"] - nearer["fid_drift"] > thresholds.FID_DRIFT_GROWS_BY_AT_LEAST
