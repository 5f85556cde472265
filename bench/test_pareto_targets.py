"""What prediction was meant to reach at equal cost, on every model, solver and number of steps: held or not.

A target that does not hold is a finding, not a failure. The panels are those of `test_pareto.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from bench.harness.measure import describe
from bench.harness.workload import Workload
from bench.pareto import aims
from bench.pareto import points as pareto
from bench.pareto.aims import Point
from bench.pareto.points import Panel, figure
from bench.test_pareto import PARTS
from deepcache.results.picture import picture

pytestmark = [pytest.mark.shows_images, pytest.mark.xdist_group("pareto")]  # which share panels
GAIN_DB, GAIN_MEDIAN_DB, SHARE_OF_REUSE = 8.0, 12.0, 0.6  # the targets
INTERVALS = (2, 3, 5)
LEADS = {"uncached": "psnr_db", "solved": "solved_db"}
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
    found = _found(panel.points)
    held = _held(found)
    best = {f"chosen_{n}": point.name for n in INTERVALS if (point := aims.prediction(panel.points, n)) is not None}
    record(
        experiment="pareto_targets",
        row=f"{panel.workload.model}, {panel.name}",
        settings={**describe(panel.workload, panel.uncached, panel.uncached, panel.seeds), **held, **best},
        metrics={**found, "num_held": sum(held.values()), "num_targets": len(held)},
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


def _found(points: Sequence[Point]) -> dict[str, float]:
    """What was measured; what could not be is left out."""
    gains = {
        **{f"gain_{n}": aims.gain(points, n, aims.psnr_of_mean) for n in INTERVALS},
        **{f"gain_median_{n}": aims.gain(points, n, np.median) for n in INTERVALS},
        "gain_cheaper": aims.gain(points, 3, np.median, SHARE_OF_REUSE),
    }
    found = {}
    for name, gain in gains.items():
        if gain is not None:
            found |= {name: gain.value, f"{name}_low": gain.low, f"{name}_high": gain.high}
    leads = {f"lead_{name}": aims.least_lead(points, metric) for name, metric in LEADS.items()}
    return found | {name: lead for name, lead in leads.items() if lead is not None}


def _held(found: dict[str, float]) -> dict[str, bool]:
    """A target that could not be measured does not hold."""
    least = {f"gain_{n}": GAIN_DB for n in INTERVALS} | {f"gain_median_{n}": GAIN_MEDIAN_DB for n in INTERVALS}
    least |= {"gain_cheaper": 0.0} | {f"lead_{name}": 0.0 for name in LEADS}
    return {f"held_{name}": found.get(name, float("-inf")) >= limit for name, limit in least.items()}
