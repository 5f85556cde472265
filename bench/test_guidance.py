"""Strong guidance and few steps (beyond the paper): the default order against reuse, on the solvers that users take.

Guidance multiplies the error of the difference between the conditional and the unconditional half, and the longer the
steps, the farther a polynomial is extrapolated. `pytest bench` measures a selection; name this file, or pass `--all`,
to measure every solver, number of steps, strength of guidance and interval, which takes more than an hour.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import product
from math import comb
from typing import Any, NamedTuple

import numpy as np
import pytest
from matplotlib.figure import Figure
from torch import Tensor

from bench.harness.columns import MEDIAN, TOTAL
from bench.harness.laws import Judge
from bench.harness.measure import costs, describe
from bench.harness.requirements import Needs
from bench.harness.workload import Run, Workload
from deepcache.metrics.fidelity import Errors, drift_of_errors, psnr_of, squared_errors, tipped
from deepcache.metrics.statistics import TAIL, bootstrap
from deepcache.plan import DEFAULT_ORDER, EVERY, IDLE, Order
from deepcache.results.figures import picture
from deepcache.results.layout import Column, Layout

GUIDANCE = {"prompted": (3.0, 5.0, 7.5), "class_conditional": (1.5, 3.0, 5.0)}
SOLVERS = ("ddim", "plms", "dpm-solver++", "euler")
STEPS = (20, 25, 30, 50)
INTERVALS = (2, 3, 5)
METHODS: tuple[tuple[int, Order], ...] = (*((0, order) for order in EVERY), (IDLE, 0), (IDLE, DEFAULT_ORDER))
FIRST_SEED, NUM_SEEDS = 3_000_000, 16  # seeds of this experiment's own, on which no rule was chosen
NEEDS = Needs(tuple(GUIDANCE))
TABLE = Layout(
    "guidance",
    title="Strong guidance and few steps: the default order against reuse (from, to: 95% bootstrap over seeds)",
    look="Look at “gain”: where its interval, “from” and “to”, is above 0, the default order is nearer than reuse.",
    columns=(
        TOTAL,
        MEDIAN,
        Column("psnr_decile_db", "worst decile (dB)", 1),
        Column("num_tipped", "tipped seeds", 0),
        Column("gain_db", "gain (dB)", 1),
        Column("gain_db_low", "from", 1),
        Column("gain_db_high", "to", 1),
        Column("gain_decile_db", "gain, worst decile (dB)", 1),
        Column("more_tipped", "more tipped", 0),
    ),
)


class Panel(NamedTuple):
    """A part of the paper, a strength of guidance, a solver with its number of steps, and an interval."""

    part: str
    guidance_scale: float
    solver: str
    num_steps: int
    interval: int

    def __str__(self) -> str:
        return f"{self.part} at {self.guidance_scale:g}-{self.solver} {self.num_steps}-N={self.interval}"


# Where an order that was chosen at weak guidance tips seeds, where prediction gains most, and cases between.
SELECTED = (
    Panel("prompted", 7.5, "dpm-solver++", 25, 2),
    Panel("prompted", 7.5, "dpm-solver++", 25, 3),
    Panel("prompted", 7.5, "euler", 30, 3),
    Panel("prompted", 7.5, "ddim", 50, 3),
    Panel("prompted", 5.0, "plms", 30, 3),
    Panel("prompted", 3.0, "dpm-solver++", 25, 3),
    Panel("class_conditional", 5.0, "dpm-solver++", 25, 3),
    Panel("class_conditional", 5.0, "euler", 20, 2),
    Panel("class_conditional", 1.5, "ddim", 50, 5),
)
PANELS = tuple(
    Panel(part, scale, solver, num_steps, interval)
    for part, scales in GUIDANCE.items()
    for scale, solver, num_steps, interval in product(scales, SOLVERS, STEPS, INTERVALS)
)
# A seed near a fork tips by any change, also by a hundredth of other start noise (test_prediction.py). So in a panel
# the default may tip more seeds than order 0 as far as a fair coin would: among the seeds that just one of the two
# tips, the share of the default's must be one that a coin gives with at least this probability. Over all panels such
# chance cancels, and there the default must not tip more seeds at all.
LEAST_PROBABILITY = TAIL
MOST_OF_THE_CELLS = 0.98  # of the map: the colours end at the gain that this share of the cells does not exceed

pytestmark = [pytest.mark.shows_images, pytest.mark.xdist_group("guidance")]


class Gain(NamedTuple):
    """The default gains this over order 0, on the same seeds and branch; `low` and `high` bound the median's gain."""

    median: float
    low: float
    high: float
    decile: float
    num_tipped: int
    num_tipped_by_reuse: int
    probability: float  # that a coin gives the default so many of the seeds that one of the two tips, or more

    @property
    def metrics(self) -> dict[str, float]:
        return {
            "gain_db": self.median,
            "gain_db_low": self.low,
            "gain_db_high": self.high,
            "gain_decile_db": self.decile,
            "more_tipped": self.num_tipped - self.num_tipped_by_reuse,
        }


@pytest.mark.parametrize(
    "panel",
    [pytest.param(each, id=str(each), marks=[pytest.mark.named_alone] * (each not in SELECTED)) for each in PANELS],
)
def test_guidance(record: Callable[..., None], workload: Callable[[str], Workload], panel: Panel, judge: Judge) -> None:
    model = _guided(workload(panel.part), panel.guidance_scale)
    uncached, seeds = _uncached(model, panel), _seeds(model)
    gains = {branch: _gain(model, panel, branch) for branch in (0, IDLE)}
    for branch, order in METHODS:
        run = _run(model, panel, branch, order)
        errors, cost = _measured(model, run, uncached)
        psnr_db = psnr_of(errors)
        own = gains[branch].metrics if order == DEFAULT_ORDER else {}
        record(
            table=TABLE,
            key={
                "model": model.model,
                "guidance": panel.guidance_scale,
                "solver": panel.solver,
                "steps": uncached.num_steps,
                "interval": panel.interval,
                "branch": branch,
                "order": order,
            },
            label=f"{model.model} at {panel.guidance_scale:g}, {panel.solver} {uncached.num_steps}, "
            f"N={panel.interval}, {'idle, ' if branch == IDLE else ''}order {order}",
            settings={**describe(model, run, uncached, seeds), "interval": panel.interval},
            metrics={
                **cost,
                **drift_of_errors(errors),
                "psnr_decile_db": _decile(np.array(psnr_db)),
                "num_tipped": int(tipped(errors).sum()),
                **own,
            },
            per_seed={"psnr_db": psnr_db},
        )
    if judge(model):
        for gain in gains.values():
            assert gain.high >= 0
            assert gain.probability >= LEAST_PROBABILITY


def test_guidance_map(
    request: pytest.FixtureRequest, record: Callable[..., None], workload: Callable[[str], Workload], judge: Judge
) -> None:
    """Draw what the default gains in the panels of this session; over all of them it tips no more seeds."""
    panels = [*_of_session(request)]
    if not panels:
        pytest.skip("no panel is selected")
    models = {panel: _guided(workload(panel.part), panel.guidance_scale) for panel in panels}
    gains = {panel: _gain(model, panel, 0) for panel, model in models.items()}
    names = {panel.part: model.model for panel, model in models.items()}
    first = panels[0]
    alt = (
        "For each model, guidance and solver a row, for each interval a cell: the gain of the default order over order "
        "0 in the median as its colour and in dB, and below it the seeds that tip by the default and by order 0."
    )
    uncached = _uncached(models[first], first)
    record(
        table=TABLE,
        key={"picture": "map"},
        label="map",
        settings=describe(models[first], uncached, uncached, _seeds(models[first])),
        metrics={},
        pictures=[picture("guidance", alt, _map(gains, names))],
    )
    if judge(models[first], when=set(SELECTED) <= set(panels)):  # chance does not cancel over a few panels
        for branch in (0, IDLE):
            found = [_gain(model, panel, branch) for panel, model in models.items()]
            assert sum(gain.num_tipped for gain in found) <= sum(gain.num_tipped_by_reuse for gain in found)


def _of_session(request: pytest.FixtureRequest) -> Iterator[Panel]:
    """Yield the panels whose tests pytest selected."""
    for item in request.session.items:
        if isinstance(item, pytest.Function) and item.originalname == test_guidance.__name__:
            panel = item.callspec.params["panel"]
            assert isinstance(panel, Panel)
            yield panel


@cache
def _guided(model: Workload, guidance_scale: float) -> Workload:
    return model.guided(guidance_scale)


def _seeds(model: Workload) -> range:
    return model.seeds(FIRST_SEED)[:NUM_SEEDS]


def _uncached(model: Workload, panel: Panel) -> Run:
    """Return the uncached run, with no more steps than `--num-steps` asks for."""
    return model.uncached(scheduler=panel.solver, num_steps=min(panel.num_steps, model.protocol.num_steps))


def _run(model: Workload, panel: Panel, branch: int, order: Order) -> Run:
    uncached = _uncached(model, panel)
    return model.every(panel.interval, branch, order, scheduler=panel.solver, num_steps=uncached.num_steps)


@cache
def _images(model: Workload, uncached: Run) -> Tensor:
    return model.images(uncached, _seeds(model), description=f"uncached, {uncached.scheduler}")[0]


@cache
def _measured(model: Workload, run: Run, uncached: Run) -> tuple[Errors, dict[str, float]]:
    """Return the squared error of each seed and what the run costs; images are not kept, since the grid has many."""
    images, found = model.images(run, _seeds(model), description=f"{run.scheduler}, order {run.cache_plan.order}")
    return squared_errors(images, _images(model, uncached)), costs(model, run, uncached, found)


@cache
def _gain(model: Workload, panel: Panel, branch: int) -> Gain:
    runs = [_run(model, panel, branch, order) for order in (DEFAULT_ORDER, 0)]
    errors = [_measured(model, run, _uncached(model, panel))[0] for run in runs]
    pairs = np.array([psnr_of(each) for each in errors]).T  # (B, 2)

    def difference(each: np.ndarray, axis: int) -> np.ndarray:
        both = np.median(each, axis=axis)
        return np.asarray(both[..., 0] - both[..., 1])

    own, other = (tipped(each) for each in errors)
    return Gain(
        float(difference(pairs, axis=0)),
        *bootstrap(difference, pairs),
        _decile(pairs[:, 0]) - _decile(pairs[:, 1]),
        int(own.sum()),
        int(other.sum()),
        _by_chance(int((own & ~other).sum()), int((own ^ other).sum())),
    )


def _decile(psnr_db: np.ndarray) -> float:
    return float(np.quantile(psnr_db, 0.1))


def _by_chance(number: int, tosses: int) -> float:
    """Return the probability that a coin falls on a side at least `number` times of `tosses`."""
    return sum(comb(tosses, heads) for heads in range(number, tosses + 1)) / 2**tosses


def _map(gains: Mapping[Panel, Gain], names: Mapping[str, str]) -> Figure:
    """Draw a map for each model: a row for each guidance and solver, a column for each interval."""
    rows = {part: list(dict.fromkeys(panel[1:4] for panel in gains if panel.part == part)) for part in names}
    most = max(len(each) for each in rows.values())
    figure = Figure(figsize=(4.6 * len(rows), 0.34 * most + 1.2), layout="constrained")
    limit = max(1.0, float(np.quantile([abs(gain.median) for gain in gains.values()], MOST_OF_THE_CELLS)))
    axes = figure.subplots(1, len(rows), squeeze=False)[0]
    drawn: Any = None
    for axis, (part, lines) in zip(axes, rows.items(), strict=True):
        drawn = _cells(axis, [[gains.get(Panel(part, *line, n)) for n in INTERVALS] for line in lines], limit)
        axis.set_title(f"{names[part]}: guidance, solver and steps", fontsize=8)
        axis.set_yticks(range(len(lines)), [f"{scale:g}, {solver} {steps}" for scale, solver, steps in lines])
    bar = figure.colorbar(drawn, ax=list(axes), orientation="horizontal", shrink=0.6, pad=0.02, extend="both")
    bar.set_label("gain over order 0, median seed (dB); in brackets: tipped seeds, default / order 0", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def _cells(axis: Any, gains: Sequence[Sequence[Gain | None]], limit: float) -> Any:
    """Draw the cells of one model; a panel that was not measured is left empty."""
    values = np.array([[np.nan if gain is None else gain.median for gain in line] for line in gains])
    drawn = axis.imshow(values, vmin=-limit, vmax=limit, cmap="PuOr_r", aspect="auto")
    for y, x in np.ndindex(values.shape):
        if (gain := gains[y][x]) is not None:
            colour = "white" if abs(gain.median) > 0.6 * limit else "black"
            text = f"{gain.median:+.1f} ({gain.num_tipped} / {gain.num_tipped_by_reuse})"
            axis.text(x, y, text, ha="center", va="center", fontsize=7, color=colour)
    axis.set_xticks(range(len(INTERVALS)), [f"N={interval}" for interval in INTERVALS])
    axis.tick_params(labelsize=7, length=0)
    return drawn
