"""Tables 7 to 10: centre and power of the quadratic plan at N = 20, over the paper's 250 steps.

Over 50 steps the powers would all place the full steps alike.
"""

from __future__ import annotations

import pytest
from measure import Measure
from workload import Workload

INTERVAL = 20
TIMES_THE_STEPS = 5  # 250 instead of 50
CENTERS = [(center, 1.2) for center in (10, 50, 80, 120, 150, 200)]  # of the paper's 250 steps
POWERS = [(120, power) for power in (1.05, 1.1, 1.3, 1.4)]


@pytest.mark.parametrize(("center", "power"), [*CENTERS, *POWERS], ids=lambda value: str(value))
def test_table7(measure: Measure, mini_ldm: Workload, center: int, power: float) -> None:
    uncached = mini_ldm.uncached(num_steps=TIMES_THE_STEPS * mini_ldm.protocol.num_steps)
    found = measure(
        "table7",
        f"centre {center}/250, power {power}",
        mini_ldm,
        mini_ldm.around(center / 250, power, INTERVAL, num_steps=uncached.num_steps),
        uncached,
        mini_ldm.seeds(),
        timed=False,
        with_quality=True,
        settings={"center": center, "power": power, "interval": INTERVAL},
    )
    assert found.metrics["num_full"] == mini_ldm.every(INTERVAL, num_steps=uncached.num_steps).plan.num_full
