"""Table 2: unconditional generation in pixel space: DDPM on CIFAR-10 and LSUN in the paper, mini-ddpm here.

CIFAR-10 is sampled on quadratic timesteps, LSUN on uniform ones; both at branch 2.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import thresholds
from measure import Measure
from scales import scale_of
from workload import Workload


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("name", list(scale_of(metafunc.config).pixels))


@pytest.mark.parametrize("interval", [1, 2, 3, 5, 10], ids="N={}".format)
def test_table2(
    measure: Measure,
    workload: Callable[..., Workload],
    pytestconfig: pytest.Config,
    name: str,
    interval: int,
) -> None:
    model, scheduler = scale_of(pytestconfig).pixels[name]
    pixels = workload(model)
    uncached = pixels.uncached(scheduler=scheduler)
    run = uncached if interval == 1 else pixels.every(interval, scheduler=scheduler)
    found = measure(
        "table2",
        f"{name}, " + ("uncached" if interval == 1 else f"N={interval}"),
        pixels,
        run,
        uncached,
        pixels.seeds(),
        with_quality=True,
        settings={"interval": interval},
    )
    if run.plan is not None and found.timing is not None and uncached.num_steps >= thresholds.ENOUGH_STEPS:
        assert found.timing.speedup >= thresholds.SPEEDUP_OF_MACS_RATIO_IN_PIXELS * pixels.cost.ratio(run.plan)
