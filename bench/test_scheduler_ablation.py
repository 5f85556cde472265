"""Scheduler ablation (course project, 4.1): with and without caching, and how far caching moves the images."""

from __future__ import annotations

import pytest
import thresholds
from measure import Measure
from workload import Workload

INTERVAL = 3
SCHEDULERS = ("plms", "ddim", "pndm", "euler", "heun", "dpm-solver++")
METHODS = {"uncached": None, "N=3": 0, "N=3, order 1": 1}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_scheduler(measure: Measure, prompted: Workload, name: str, method: str) -> None:
    order = METHODS[method]
    uncached = prompted.uncached(scheduler=name)
    run = uncached if order is None else prompted.every(INTERVAL, order=order, scheduler=name)
    found = measure(
        "scheduler",
        f"{name}, {method}",
        prompted,
        run,
        uncached,
        prompted.seeds(),
        timed=order != 1,  # it costs what order 0 does
        settings={"interval": INTERVAL if run.plan else 1},
    )
    enough = prompted.is_mini and prompted.protocol.num_steps >= thresholds.ENOUGH_STEPS
    if order is None and enough:
        assert found.metrics["clip_score"] >= thresholds.CLIP_SCORE_OF_MINI_SD
    if order is not None and enough:
        uncached_score = sum(found.uncached.clip_scores) / len(found.uncached.clip_scores)
        assert found.metrics["clip_score"] >= uncached_score - thresholds.CLIP_SCORE_LOST_AT_INTERVAL_3
