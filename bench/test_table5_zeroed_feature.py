"""Table 5: with zeros for the kept feature the images are lost, so it is the feature that carries them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from bench.harness.columns import CIFAR, DDPM, DRIFT, FID, LDM, MEDIAN, PSNR, TOTAL, of_the_paper
from bench.harness.laws import Judge
from bench.harness.measure import Measure
from bench.harness.requirements import Needs
from bench.harness.workload import Workload
from deepcache.plan import DEFAULT_ORDER
from deepcache.results.layout import Layout

NEEDS = Needs(("class_conditional", "unconditional"), real_images=True)
FEATURES = {"kept": "DeepCache", "zeros": "DeepCache w/o cached features (zero matrix)"}
# The question asked again: are the MACs of shallow steps better spent on more full steps, with idle steps between them?
AT_EQUAL_COST = ("predicted", "idle")
TABLE = Layout(
    "table5",
    title="Table 5: what the deep feature is for",
    look="Compare a plan with the same plan whose feature is zeroed: the gap is what the deep feature is worth.",
    columns=(TOTAL, FID, PSNR, MEDIAN, DRIFT),
    published=tuple(
        row
        for part, settings, where in (
            ("unconditional", {**DDPM, "guidance_scale": None}, {"dataset": CIFAR}),
            ("class_conditional", LDM, {"interval": 20}),
        )
        for row in of_the_paper(
            "DDPM on CIFAR-10 at N = 10 (branch 2), LDM-4-G on ImageNet at N = 20 of 250 steps (branch 0)",
            settings,
            [
                ({"part": part, "feature": feature}, {"table": "Table 5", "method": method, **where})
                for feature, method in FEATURES.items()
            ],
        )
    ),
    number=5,
)
# Table 5 of the paper: FID 193 instead of 9.7, and 312 instead of 7.4, twenty times and more. Here drift is measured,
# which has no floor of its own; a factor of ten leaves no doubt.
ZEROED_DRIFTS_FARTHER = 10.0

# As many full steps as in the paper: 10 of DDPM's 100, and of LDM-4-G's 250, at N = 20, 13; here 10 of 50.
INTERVALS = {"unconditional": 10, "class_conditional": 5}
PAPER_INTERVALS = {"unconditional": 10, "class_conditional": 20}

pytestmark = pytest.mark.shows_images


@pytest.mark.parametrize("part", INTERVALS)
@pytest.mark.parametrize("feature", FEATURES)
def test_table5(measure: Measure, workload: Callable[..., Workload], part: str, feature: str, judge: Judge) -> None:
    found, zeroed = workload(part), feature == "zeros"
    interval = _interval(found, part)
    run = found.every(interval)
    seeds = found.seeds()
    row = measure(
        TABLE,
        {"part": part, "interval": interval, "feature": feature},
        found,
        replace(run, zeroed=zeroed),
        found.uncached(),
        seeds,
        label=f"{found.model}, N={interval}" + (", zeros" if zeroed else ""),
        timed=False,
        with_quality=True,
        settings={"interval": interval, "zeroed": zeroed},
    )
    if judge(found, when=zeroed):
        kept = measure.change(found.samples(run, seeds), row.uncached)
        assert row.metrics["fid_drift"] >= ZEROED_DRIFTS_FARTHER * kept["fid_drift"]


@pytest.mark.parametrize("part", INTERVALS)
@pytest.mark.parametrize("kind", AT_EQUAL_COST)
def test_table5_at_equal_cost(
    measure: Measure, workload: Callable[..., Workload], part: str, kind: str, judge: Judge
) -> None:
    """Shallow steps around a predicted feature, and idle steps whose plan has as many full steps as the MACs allow."""
    found = workload(part)
    interval = _interval(found, part)
    shallow = found.every(interval, order=DEFAULT_ORDER)
    run = found.idle(shallow) if kind == "idle" else shallow
    row = measure(
        TABLE,
        {"part": part, "interval": interval, "feature": kind},
        found,
        run,
        found.uncached(),
        found.seeds(),
        label=f"{found.model}, " + ("idle at these MACs" if kind == "idle" else f"N={interval}, predicted"),
        timed=False,
        with_quality=True,
        settings={"interval": interval, "zeroed": False},
    )
    if found.is_mini:  # exact at any number of steps
        step = found.cost.full(found.convention)
        allowed = round(found.cost.mean(shallow.cache_plan, found.convention) * shallow.cache_plan.num_steps)
        assert allowed - step < row.metrics["total_macs"] <= allowed
        judge.has_judged = True


def _interval(found: Workload, part: str) -> int:
    return INTERVALS[part] if found.is_mini else PAPER_INTERVALS[part]
