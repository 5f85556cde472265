"""The scheduler ablation (course project, 4.1) measures every solver with and without a cache."""

from __future__ import annotations

import pytest

from bench.harness.columns import CLIP, LATENCY, MEDIAN, PSNR, SPEEDUP, TIPPED
from bench.harness.laws import CLIP_SCORE_OF_MINI_SD, Judge, assert_clip_score_is_kept
from bench.harness.measure import Measure
from bench.harness.requirements import Needs
from bench.harness.workload import Workload
from deepcache.plan import DEFAULT_ORDER, IDLE, Order
from deepcache.results.layout import Layout
from deepcache.sampling.schedulers import STOCHASTIC

NEEDS = Needs(("prompted",))
TABLE = Layout(
    "scheduler",
    title="Scheduler ablation (course project, 4.1)",
    columns=(LATENCY, SPEEDUP, CLIP, PSNR, MEDIAN, TIPPED),
)
INTERVAL = 3
SCHEDULERS = ("plms", "ddim", "pndm", "euler", "heun", "dpm-solver++", *STOCHASTIC)
IDLING = "N=3, idle"
METHODS: dict[str, Order | None] = {"uncached": None, "N=3": 0, "N=3, order 1": 1, IDLING: DEFAULT_ORDER}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_scheduler(measure: Measure, prompted: Workload, name: str, method: str, judge: Judge) -> None:
    order = METHODS[method]
    uncached = prompted.uncached(scheduler=name)
    branch = IDLE if method == IDLING else None
    run = uncached if order is None else prompted.every(INTERVAL, branch, order, scheduler=name)
    found = measure(
        TABLE,
        {
            "solver": name,
            "method": "uncached" if order is None else "uniform",
            "order": order or 0,
            **({"branch": IDLE} if branch == IDLE else {}),
        },
        prompted,
        run,
        uncached,
        prompted.seeds(),
        label=f"{name}, {method}",
        timed=order != 1,  # order 1 costs what order 0 costs
        settings={"interval": INTERVAL if run.plan else 1},
    )
    if not judge(prompted):
        return
    if order is None:
        assert found.metrics["clip_score"] >= CLIP_SCORE_OF_MINI_SD
    else:
        assert_clip_score_is_kept(found.metrics["clip_score"], found.uncached.clip_scores)
