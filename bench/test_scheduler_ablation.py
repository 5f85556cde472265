"""The scheduler ablation (course project, 4.1) measures every solver with and without a cache."""

from __future__ import annotations

import pytest

from bench.harness.columns import CLIP, LATENCY, MEDIAN, PSNR, SPEEDUP, TIPPED
from bench.harness.laws import CLIP_SCORE_OF_MINI_SD, Judge, assert_clip_score_is_kept, medians_db
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
    look="Compare PSNR within a solver: which solver, more than the plan, decides how near cached images are.",
    columns=(LATENCY, SPEEDUP, CLIP, PSNR, MEDIAN, TIPPED),
)
INTERVAL = 3
SCHEDULERS = ("plms", "ddim", "pndm", "euler", "heun", "dpm-solver++", *STOCHASTIC)
IDLING = "N=3, idle"
# An idle step's output is a function of the timestep alone. It does not see the noise that a stochastic solver has just
# added, nor the samples of PNDM's Runge-Kutta start, which calls the U-Net at one timestep with several samples. A
# shallow step sees both in its outermost stages. So on these solvers an idle row loses some score, which is recorded;
# what must hold is that the shallow row, of which the score is kept, is nearer than the idle one.
UNSEEN = (*STOCHASTIC, "pndm")
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
    elif method == IDLING and name in UNSEEN:
        shallow = prompted.every(INTERVAL, order=1, scheduler=name)
        assert medians_db(prompted, uncached, [shallow])[0] > found.metrics["psnr_median_db"]
    else:
        assert_clip_score_is_kept(found.metrics["clip_score"], found.uncached.clip_scores)
