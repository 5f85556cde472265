"""Each row says which aims prediction reached at equal cost, for a model, a solver and a number of steps.

A target that does not hold is a finding, not a failure: these rows are not judged. The panels are those of
`test_pareto.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from bench.harness.measure import describe
from bench.harness.requirements import Needs
from bench.harness.workload import Workload
from bench.pareto import aims
from bench.pareto import points as pareto
from bench.pareto.aims import Point
from bench.pareto.points import Panel, figure
from bench.test_pareto import PARTS
from deepcache.results.figures import picture
from deepcache.results.layout import Column, Layout

NEEDS = Needs(PARTS)
TABLE = Layout(
    "pareto_targets",
    title="Cost against fidelity: what was aimed at, and of the prediction that is chosen (from: 95% bootstrap)",
    look="Compare each gain with the aim in its title; a gain counts where “from” is above 0, too.",
    columns=(
        *(
            column
            for n in (2, 3, 5)
            for column in (
                Column(f"gain_{n}", f"over reuse, N={n} (dB; aim 8)", 1),
                Column(f"gain_{n}_low", f"from, N={n}", 1),
            )
        ),
        *(
            column
            for n in (2, 3, 5)
            for column in (
                Column(f"gain_median_{n}", f"median seed, N={n} (dB; aim 12)", 1),
                Column(f"gain_median_{n}_low", f"median from, N={n}", 1),
            )
        ),
        Column("lead_uncached", "least lead over fewer steps, 25-70% of MACs (dB; aim 0)", 1),
        Column("lead_solved", "the same, to the solution (dB; aim 0)", 1),
        Column("gain_cheaper", "over reuse at N=3, for 0.6 of its MACs (dB; aim 0)", 1),
        Column("num_held", "aims held", 0),
        Column("num_targets", "of", 0),
    ),
)
# The panels are shared with test_pareto.py.
pytestmark = [pytest.mark.named_alone, pytest.mark.shows_images, pytest.mark.xdist_group("pareto")]
GAIN_DB, GAIN_MEDIAN_DB, SHARE_OF_REUSE = 8.0, 12.0, 0.6  # the targets
INTERVALS = (2, 3, 5)
LEADS = {"uncached": "psnr_db", "solved": "solved_db"}
AXES = {
    "psnr_median_db": "PSNR to the uncached images, median seed (dB)",
    "solved_db": "PSNR to the solution, median seed (dB)",
}


@pytest.mark.usefixtures("judge")
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
        table=TABLE,
        key={"model": panel.workload.model, **panel.key},
        label=f"{panel.workload.model}, {panel.name}",
        settings={**describe(panel.workload, panel.uncached, panel.uncached, panel.seeds), **held, **best},
        metrics={**found, "num_held": sum(held.values()), "num_targets": len(held)},
    )


@pytest.mark.usefixtures("judge")
@pytest.mark.parametrize("part", PARTS)
def test_pictures(record: Callable[..., None], workload: Callable[[str], Workload], part: str) -> None:
    model = workload(part)
    panels = {(s, n): _panel(model, s, n) for s in pareto.SOLVERS for n in pareto.STEPS}
    rows = [list(dict.fromkeys(panels[s, n] for n in pareto.STEPS)) for s in pareto.SOLVERS]
    first = rows[0][0]
    record(
        table=TABLE,
        key={"model": model.model, "picture": "curves"},
        label=f"{model.model}, curves",
        settings=describe(model, first.uncached, first.uncached, first.seeds),
        metrics={},
        pictures=[
            picture(
                f"pareto-{model.model}-{'uncached' if metric == 'psnr_median_db' else 'solution'}",
                f"{model.model}: {title} over the share of the uncached MACs, a panel a solver and number of steps, "
                "with bootstrap intervals: fewer steps, reuse, prediction, idle, mixed and tuned plans.",
                figure(rows, metric, title),
            )
            for metric, title in AXES.items()
        ],
    )


def _panel(model: Workload, solver: str, num_steps: int) -> Panel:
    return pareto.panel(model, solver, pareto.steps_of(model, num_steps))


def _found(points: Sequence[Point]) -> dict[str, float]:
    """Return the gains and leads that could be measured."""
    gains = {
        **{f"gain_{n}": aims.gain(points, n, aims.psnr_of_mean) for n in INTERVALS},
        **{f"gain_median_{n}": aims.gain(points, n, np.median) for n in INTERVALS},
        "gain_cheaper": aims.gain(points, 3, np.median, SHARE_OF_REUSE),
    }
    found: dict[str, float] = {}
    for name, gain in gains.items():
        if gain is not None:
            found |= {name: gain.value, f"{name}_low": gain.low, f"{name}_high": gain.high}
    leads = {f"lead_{name}": aims.least_lead(points, metric) for name, metric in LEADS.items()}
    return found | {name: lead for name, lead in leads.items() if lead is not None}


def _held(found: dict[str, float]) -> dict[str, bool]:
    """Return for each target whether it holds; one that could not be measured does not."""
    least = {f"gain_{n}": GAIN_DB for n in INTERVALS} | {f"gain_median_{n}": GAIN_MEDIAN_DB for n in INTERVALS}
    least |= {"gain_cheaper": 0.0} | {f"lead_{name}": 0.0 for name in LEADS}
    return {f"held_{name}": found.get(name, float("-inf")) >= limit for name, limit in least.items()}
