"""What prediction was meant to reach at equal cost, on every model, solver and number of steps: held or not.

Nothing is asserted: a target that does not hold is a finding. The panels are those of `test_pareto.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import pareto
import pytest
from measure import describe
from pareto import Panel
from pareto_picture import figure
from test_pareto import PARTS
from workload import Workload

from deepcache.results.picture import picture

pytestmark = pytest.mark.shows_images
GAIN_DB, GAIN_MEDIAN_DB, SHARE_OF_REUSE = 8.0, 12.0, 0.6  # the targets
AXES = {
    "psnr_median_db": "PSNR to the uncached images, median seed (dB)",
    "solved_db": "PSNR to the solution, median seed (dB)",
}


@pytest.mark.parametrize("num_steps", pareto.STEPS, ids="{} steps".format)
@pytest.mark.parametrize("solver", pareto.SOLVERS)
@pytest.mark.parametrize("part", PARTS)
def test_targets(
    record: Callable[..., None], workload: Callable[[str], Workload], part: str, solver: str, num_steps: int
) -> None:
    panel = _panel(workload(part), solver, num_steps)
    found = _found(panel)
    metrics = {name: value for name, value in found.items() if value is not None}
    held = _held(found)
    record(
        experiment="pareto_targets",
        row=f"{panel.workload.model}, {panel.name}",
        settings={**describe(panel.workload, panel.uncached, panel.uncached, panel.seeds), **held},
        metrics={**metrics, "num_held": sum(held.values()), "num_targets": len(held)},
    )


@pytest.mark.parametrize("part", PARTS)
def test_pictures(record: Callable[..., None], workload: Callable[[str], Workload], part: str) -> None:
    model = workload(part)
    panels = {(s, n): _panel(model, s, n) for s in pareto.SOLVERS for n in pareto.STEPS}
    rows = [list(dict.fromkeys(panels[s, n] for n in pareto.STEPS)) for s in pareto.SOLVERS]
    first = rows[0][0]
    record(
        experiment="pareto_targets",
        row=f"{model.model}, curves",
        settings=describe(model, first.uncached, first.uncached, first.seeds),
        metrics={},
        pictures=[
            picture(
                f"pareto-{model.model}-{'uncached' if metric == 'psnr_median_db' else 'solution'}",
                f"{model.model}: {title} over the share of the uncached MACs, a panel a solver and number of steps, "
                "with bootstrap intervals: fewer steps, reuse, prediction of orders 1 and 2, optimal and tuned plans.",
                figure(rows, metric, title),
            )
            for metric, title in AXES.items()
        ],
    )


def _panel(model: Workload, solver: str, num_steps: int) -> Panel:
    return pareto.panel(model, solver, pareto.steps_of(model, num_steps))


def _found(panel: Panel) -> dict[str, float | None]:
    gains = {
        f"{name}_{interval}": pareto.gain_at_equal_macs(panel, interval, metric)
        for name, metric in (("gain", "psnr_db"), ("gain_median", "psnr_median_db"))
        for interval in (2, 3, 5)
    }
    return {
        **gains,
        "lead_uncached": pareto.least_lead_over_fewer_steps(panel, "psnr_median_db"),
        "lead_solved": pareto.least_lead_over_fewer_steps(panel, "solved_db"),
        "share_of_reuse": pareto.share_of_reuse(panel, "psnr_median_db"),
    }


def _held(found: dict[str, float | None]) -> dict[str, bool]:
    """A target that could not be measured does not hold."""
    least = {f"gain_{n}": GAIN_DB for n in (2, 3, 5)} | {f"gain_median_{n}": GAIN_MEDIAN_DB for n in (2, 3, 5)}
    held = {f"held_{name}": (value := found[name]) is not None and value >= limit for name, limit in least.items()}
    for name in ("lead_uncached", "lead_solved"):
        held[f"held_{name}"] = (value := found[name]) is not None and value > 0
    share = found["share_of_reuse"]
    return {**held, "held_share_of_reuse": share is not None and share <= SHARE_OF_REUSE}
