"""Tables 7 to 10 vary centre and power of the quadratic plan, with as many full steps as in the paper.

There are 13 full steps: N = 20 of 250 steps there, N = 4 of 50 here. With fewer, all powers place the full steps alike;
with 13, powers of 1.3 and 1.4 do.
"""

from __future__ import annotations

import pytest

from bench.harness.columns import LDM, MEDIAN, NUM_FULL, PSNR, QUALITY, of_the_paper
from bench.harness.laws import SAME_IMAGE_DB, Judge
from bench.harness.measure import Measure
from bench.harness.requirements import Needs
from bench.harness.workload import Workload
from deepcache.results.layout import Layout

NEEDS = Needs(("class_conditional",), real_images=True)
TABLE = Layout(
    "table7",
    title="Tables 7 to 10: centre and power of the quadratic plan",
    look="Compare rows of one number of full steps: where the full steps lie changes PSNR at no cost.",
    columns=(NUM_FULL, *QUALITY, PSNR, MEDIAN),
    published=of_the_paper(
        "LDM-4-G, ImageNet 256, DDIM 250 steps, N = 20: 13 full steps, as here",
        LDM,
        [
            *(
                ({"center": c, "power": 1.2}, {"table": "Table 7", "center": c, "power": 1.2})
                for c in (10, 50, 120, 200)
            ),
            *(({"center": 120, "power": p}, {"table": "Table 8", "center": 120, "power": p}) for p in (1.05, 1.4)),
        ],
    ),
    number=7,
)
INTERVAL, PAPER_INTERVAL = 4, 20

pytestmark = pytest.mark.shows_images
CENTERS = [(center, 1.2) for center in (10, 50, 80, 120, 150, 200)]  # of the paper's 250 steps
POWERS = [(120, power) for power in (1.05, 1.1, 1.4)]


@pytest.mark.parametrize(("center", "power"), [*CENTERS, *POWERS], ids=lambda value: str(value))
def test_table7(measure: Measure, class_conditional: Workload, center: int, power: float, judge: Judge) -> None:
    uncached = class_conditional.uncached()
    interval = INTERVAL if class_conditional.is_mini else PAPER_INTERVAL
    found = measure(
        TABLE,
        {"center": center, "power": power},
        class_conditional,
        class_conditional.around(center / 250, power, interval),
        uncached,
        class_conditional.seeds(),
        label=f"centre {center}/250, power {power}",
        timed=False,
        with_quality=True,
        settings={"center": center, "power": power, "interval": interval},
    )
    if judge(class_conditional):  # the interval lies between Table 1's N = 3 and 5, which keep the image
        assert found.metrics["psnr_median_db"] >= SAME_IMAGE_DB
