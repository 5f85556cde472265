"""Scheduler ablation (course project, 4.1): with and without caching, and how far caching moves the images."""

from __future__ import annotations

import pytest

from bench.harness import thresholds
from bench.harness.laws import assert_clip_score_is_kept, is_judged
from bench.harness.measure import Measure
from bench.harness.workload import Workload

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
    if not is_judged(prompted):
        return
    if order is None:
        assert found.metrics["clip_score"] >= thresholds.CLIP_SCORE_OF_MINI_SD
    else:
        assert_clip_score_is_kept(found.metrics["clip_score"], found.uncached.clip_scores)
