"""Tables 7 to 10: centre and power of the quadratic plan, with as many full steps as in the paper.

Those are 13: N = 20 of 250 steps there, N = 4 of 50 here. With fewer, all powers place the full steps alike; with 13,
powers of 1.3 and 1.4 do.
"""

from __future__ import annotations

import pytest

from bench.harness import thresholds
from bench.harness.laws import is_judged
from bench.harness.measure import Measure
from bench.harness.workload import Workload

INTERVAL, PAPER_INTERVAL = 4, 20

pytestmark = pytest.mark.shows_images
CENTERS = [(center, 1.2) for center in (10, 50, 80, 120, 150, 200)]  # of the paper's 250 steps
POWERS = [(120, power) for power in (1.05, 1.1, 1.4)]


@pytest.mark.parametrize(("center", "power"), [*CENTERS, *POWERS], ids=lambda value: str(value))
def test_table7(measure: Measure, class_conditional: Workload, center: int, power: float) -> None:
    uncached = class_conditional.uncached()
    interval = INTERVAL if class_conditional.is_mini else PAPER_INTERVAL
    found = measure(
        "table7",
        f"centre {center}/250, power {power}",
        class_conditional,
        class_conditional.around(center / 250, power, interval),
        uncached,
        class_conditional.seeds(),
        timed=False,
        with_quality=True,
        settings={"center": center, "power": power, "interval": interval},
    )
    if is_judged(class_conditional):  # the interval is between those of Table 1's N = 3 and 5, which keep the image
        assert found.metrics["psnr_median_db"] >= thresholds.SAME_IMAGE_DB
