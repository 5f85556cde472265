"""Table 2: unconditional generation in pixel space: DDPM on CIFAR-10 and LSUN in the paper, mini-ddpm here.

CIFAR-10 is sampled on quadratic timesteps, LSUN on uniform ones; both at branch 2.
"""

from __future__ import annotations

import pytest
import thresholds
from measure import Measure
from workload import Workload

TIMESTEPS = {"quadratic": "ddim-quadratic", "uniform": "ddim"}


@pytest.mark.parametrize("interval", [1, 2, 3, 5, 10], ids="N={}".format)
@pytest.mark.parametrize("timesteps", TIMESTEPS)
def test_table2(measure: Measure, mini_ddpm: Workload, timesteps: str, interval: int) -> None:
    scheduler = TIMESTEPS[timesteps]
    uncached = mini_ddpm.uncached(scheduler=scheduler)
    run = uncached if interval == 1 else mini_ddpm.every(interval, scheduler=scheduler)
    row = f"{timesteps} timesteps, " + ("uncached" if interval == 1 else f"N={interval}")
    found = measure(
        "table2",
        row,
        mini_ddpm,
        run,
        uncached,
        mini_ddpm.seeds(),
        timed=timesteps == "uniform",  # the timesteps change no kernel
        with_quality=True,
        settings={"interval": interval},
    )
    if run.plan is not None:
        assert found.samples.cache is not None
        assert found.samples.cache.generations[0].full_steps == run.plan.full_steps
        if found.timing is not None and uncached.num_steps >= thresholds.ENOUGH_STEPS:
            assert found.timing.speedup >= thresholds.SPEEDUP_OF_MACS_RATIO_IN_PIXELS * mini_ddpm.cost.ratio(run.plan)
