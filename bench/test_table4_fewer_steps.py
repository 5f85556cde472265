"""Tables 4 and 6: taking fewer steps instead, at the same cost, and at the same number of full steps."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.harness import thresholds
from bench.harness.laws import medians_db, skip_unless_judged
from bench.harness.measure import Measure
from bench.harness.workload import SOLVERS, Run, Workload

pytestmark = pytest.mark.shows_images


def _run(class_conditional: Workload, uncached: Run, method: str, interval: int) -> Run:
    order = int(method.removeprefix("order ")) if method.startswith("order") else 0
    cached = class_conditional.every(interval, order=order, scheduler=uncached.scheduler, num_steps=uncached.num_steps)
    if method == "fewer steps at the cost of":
        return class_conditional.fewer(uncached, cached)
    if method == "as many steps as full ones of":
        assert cached.plan is not None
        return replace(uncached, num_steps=cached.plan.num_full)
    return cached


@pytest.mark.parametrize(
    "method", ["order 0", "order 1", "order 2", "fewer steps at the cost of", "as many steps as full ones of"]
)
@pytest.mark.parametrize("interval", [2, 3, 5], ids="N={}".format)
@pytest.mark.parametrize("solver", SOLVERS)
def test_fewer_steps(measure: Measure, class_conditional: Workload, solver: str, interval: int, method: str) -> None:
    uncached = class_conditional.uncached_by(solver)
    run = _run(class_conditional, uncached, method, interval)
    name = {"order 0": f"N={interval}", "order 1": f"N={interval}, order 1", "order 2": f"N={interval}, order 2"}
    found = measure(
        "table4",
        f"{solver}, " + name.get(method, f"{method} N={interval}"),
        class_conditional,
        run,
        uncached,
        class_conditional.seeds(),
        timed=False,
        with_quality=True,
        settings={"curve": f"{solver}, {method}", "interval": interval, "method": method},
    )
    step, cost = class_conditional.cost.full(class_conditional.convention), found.metrics["total_macs"]
    cached = _run(class_conditional, uncached, "order 0", interval)
    total = class_conditional.cost.mean(cached.plan, class_conditional.convention) * cached.plan.num_steps
    if method.startswith("fewer"):
        assert abs(cost - total) <= step / 2  # rounded to a whole step


@pytest.mark.parametrize("interval", thresholds.PREDICTION_BEATS_FEWER_STEPS, ids="N={}".format)
@pytest.mark.parametrize("solver", SOLVERS)
def test_prediction_is_nearer_than_fewer_steps(class_conditional: Workload, solver: str, interval: int) -> None:
    skip_unless_judged(class_conditional)
    uncached = class_conditional.uncached_by(solver)
    methods = ("order 1", "order 2", "fewer steps at the cost of")
    *predicted, fewer = medians_db(
        class_conditional, uncached, [_run(class_conditional, uncached, method, interval) for method in methods]
    )
    assert min(predicted) > fewer
