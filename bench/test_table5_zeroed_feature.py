"""Table 5: with zeros for the kept feature the images are lost, so it is the feature that carries them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from bench.harness import thresholds
from bench.harness.laws import is_judged
from bench.harness.measure import Measure
from bench.harness.workload import Workload

# As many full steps as in the paper: 10 of DDPM's 100, and of LDM-4-G's 250, at N = 20, 13; here 10 of 50.
INTERVALS = {"unconditional": 10, "class_conditional": 5}
PAPER_INTERVALS = {"unconditional": 10, "class_conditional": 20}

pytestmark = pytest.mark.shows_images


@pytest.mark.parametrize("part", INTERVALS)
@pytest.mark.parametrize("feature", ["kept", "zeros"])
def test_table5(measure: Measure, workload: Callable[..., Workload], part: str, feature: str) -> None:
    found, zeroed = workload(part), feature == "zeros"
    interval = INTERVALS[part] if found.is_mini else PAPER_INTERVALS[part]
    run = found.every(interval)
    seeds = found.seeds()
    row = measure(
        "table5",
        f"{found.model}, N={interval}" + (", zeros" if zeroed else ""),
        found,
        replace(run, zeroed=zeroed),
        found.uncached(),
        seeds,
        timed=False,
        with_quality=True,
        settings={"interval": interval, "zeroed": zeroed},
    )
    if zeroed and is_judged(found):
        kept = measure.change(found.samples(run, seeds), row.uncached)
        assert row.metrics["fid_drift"] >= thresholds.ZEROED_DRIFTS_FARTHER * kept["fid_drift"]
