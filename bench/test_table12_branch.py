"""Table 12 and Figure 4: every branch at N = 5: the deeper, the dearer the shallow step, and the nearer the image."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import thresholds
from measure import Measure
from workload import Workload

from deepcache.models.architectures import architecture

INTERVAL = 5
SHARE_OF_STEPS = {"mini-ddpm": 0.25, "mini-sd": 1.0}  # twelve branches in pixel space take their time
CASES = [(model, branch) for model in SHARE_OF_STEPS for branch in range(architecture(model).num_branches)]


@pytest.mark.parametrize(("model", "skip"), CASES, ids=lambda value: str(value))
def test_table12(measure: Measure, workload: Callable[..., Workload], model: str, skip: int) -> None:
    found = workload(model)
    uncached = found.uncached(num_steps=max(2, int(found.protocol.num_steps * SHARE_OF_STEPS[model])))
    run = found.every(INTERVAL, skip, num_steps=uncached.num_steps)
    row = measure(
        "table12",
        f"{model}, branch {skip}",
        found,
        run,
        uncached,
        found.seeds(),
        timed=model == "mini-ddpm",  # mini-sd's branches are timed in the layer-wise ablation
        with_quality=model == "mini-ddpm",
        settings={"interval": INTERVAL},
    )
    if row.timing is not None and found.protocol.num_steps >= thresholds.ENOUGH_STEPS:
        assert row.timing.speedup >= thresholds.SPEEDUP_OF_MACS_RATIO_IN_PIXELS * found.cost.ratio(run.plan)
