"""Tables 7 to 10: centre and power of the quadratic plan, at the same number of full steps as N = 10.

The paper varies them at N = 20 of 250 steps; of 50 steps that would leave three full ones, too few to place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import ceil

import pytest
from measure import Measure
from workload import Workload

from deepcache.plan import quadratic

INTERVAL = 10
CENTERS = [(center, 1.2) for center in (10, 50, 80, 120, 150, 200)]  # of the paper's 250 steps
POWERS = [(120, power) for power in (1.05, 1.1, 1.3, 1.4)]


@pytest.mark.parametrize(("center", "power"), [*CENTERS, *POWERS], ids=lambda value: str(value))
def test_table7(
    measure: Measure, mini_ldm: Workload, center: int, power: float, seeds_of: Callable[..., range]
) -> None:
    uncached = mini_ldm.uncached()
    calls = mini_ldm.num_calls(uncached)
    num_full = ceil(calls / INTERVAL)
    plan = quadratic(calls, num_full, center / 250 * calls, power, mini_ldm.branch)
    found = measure(
        "table7",
        f"centre {center}/250, power {power}",
        mini_ldm,
        replace(uncached, plan=plan),
        uncached,
        seeds_of(mini_ldm),
        timed=False,
        with_quality=True,
        settings={"center": center, "power": power, "interval": INTERVAL},
    )
    assert found.metrics["num_full"] <= num_full
