"""Table 12 and Figure 4: every branch at N = 5: the deeper, the dearer the shallow step, and the nearer the image."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import thresholds
from measure import Measure
from scales import scale_of
from workload import Workload

from deepcache.models.architectures import architecture

INTERVAL = 5


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    scale = scale_of(metafunc.config)
    models = (scale.unconditional, scale.prompted)
    cases = [(model, branch) for model in models for branch in range(architecture(model).num_branches)]
    metafunc.parametrize(("model", "skip"), cases)


def test_table12(
    measure: Measure, workload: Callable[..., Workload], pytestconfig: pytest.Config, model: str, skip: int
) -> None:
    found = workload(model)
    in_pixels = model == scale_of(pytestconfig).unconditional
    # twelve branches in pixel space take their time
    num_steps = found.protocol.num_steps // 4 if model == "mini-ddpm" else found.protocol.num_steps
    uncached = found.uncached(num_steps=max(2, num_steps))
    run = found.every(INTERVAL, skip, num_steps=uncached.num_steps)
    row = measure(
        "table12",
        f"{model}, branch {skip}",
        found,
        run,
        uncached,
        found.seeds(),
        timed=in_pixels,  # the prompted model's branches are timed in the layer-wise ablation
        with_quality=in_pixels,
        settings={"interval": INTERVAL},
    )
    if row.timing is not None and found.protocol.num_steps >= thresholds.ENOUGH_STEPS:
        assert row.timing.speedup >= thresholds.SPEEDUP_OF_MACS_RATIO_IN_PIXELS * found.cost.ratio(run.plan)
