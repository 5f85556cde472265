"""Figure 7 shows how an image evolves as the interval grows, prompts downwards and N = 1..20 across."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import pytest
import torch

from bench.harness.columns import CLIP, MACS, MEDIAN, NEAREST, PSNR, TIPPED
from bench.harness.laws import Judge, assert_falls
from bench.harness.measure import Measure, describe
from bench.harness.pictures import grid
from bench.harness.requirements import Needs
from bench.harness.workload import Workload
from deepcache.metrics.fidelity import psnr_each
from deepcache.results.figures import picture
from deepcache.results.layout import Layout, Plot

NEEDS = Needs(("prompted",))
TABLE = Layout(
    "figure7",
    title="Figure 7: evolution with the interval",
    look="Read PSNR down the column: it falls as N grows, while the CLIP score hardly moves.",
    columns=(MACS, CLIP, PSNR, MEDIAN, TIPPED),
    plot=Plot("macs", "psnr_median_db", "MACs", NEAREST),
)
INTERVALS = range(1, 21)
STRIDES = (2, 5, 10, 20)
SEEDS = range(5)

pytestmark = pytest.mark.shows_images


@pytest.mark.usefixtures("judge")  # the grid is judged, and not the single row
@pytest.mark.parametrize("interval", INTERVALS, ids="N={}".format)
def test_figure7(measure: Measure, prompted: Workload, interval: int) -> None:
    uncached = prompted.uncached()
    run = uncached if interval == 1 else prompted.every(interval)
    measure(
        TABLE,
        {"interval": interval},
        prompted,
        run,
        uncached,
        SEEDS,
        label=f"N={interval}",
        timed=False,
        settings={"interval": interval, "curve": "order 0"},
    )


def test_figure7_grid(record: Callable[..., None], prompted: Workload, judge: Judge) -> None:
    uncached = prompted.uncached()
    runs = [uncached, *(prompted.every(interval) for interval in INTERVALS[1:])]
    columns = [prompted.pictures(run, SEEDS) for run in runs]
    psnr = [psnr_each(images, columns[0]) for images in columns]
    figure = grid(
        torch.stack(columns, dim=1),
        columns=[f"N={interval}" for interval in INTERVALS],
        rows=[text.replace(" on a", "\non a") for text in prompted.conditions(SEEDS)["prompt"]],
        under=[["" if j == 0 else f"{psnr[j][i]:.0f} dB" for j in range(len(columns))] for i in range(len(SEEDS))],
    )
    medians_db = [statistics.median(each) for each in psnr]
    alt = (
        "A row a prompt, a column an interval from 1 to 20: the same image at first, other details further right; PSNR "
        f"of the median prompt is {medians_db[1]:.0f} dB at N = 2 and {medians_db[-1]:.0f} dB at N = 20."
    )
    record(
        table=TABLE,
        key={"picture": "grid"},
        label="grid",
        settings=describe(prompted, uncached, uncached, SEEDS),
        metrics={},
        pictures=[picture("figure7", alt, figure)],
    )
    if judge(prompted):
        assert_falls(medians_db[INTERVALS.index(interval)] for interval in STRIDES)
