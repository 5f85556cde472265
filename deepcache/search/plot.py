"""The Pareto front as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deepcache.errors import needs
from deepcache.files import whole_file
from deepcache.search.budget import MEASURES, SPEEDUP
from deepcache.search.tuned import Trial, Tuned


def require_matplotlib() -> None:
    """Raises: DeepCacheError: matplotlib is not installed."""
    with needs("a plot", "bench"):
        import matplotlib  # noqa: F401


def plot(found: Tuned, path: str | Path) -> None:
    """The trials and their front as a PNG: the budget's measure over the share of the uncached MACs.

    Raises:
        DeepCacheError: matplotlib is not installed, or the file cannot be written.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.scatter(*_points(found, found.trials), s=14, color="0.7", label="tried to the end")
    axes.plot(*_points(found, found.front), color="tab:blue", marker="o", markersize=4, label="front")
    (x,), (y,) = _points(found, (found.chosen,))
    low_high = [[y - found.promise.low], [found.promise.high - y]]
    axes.errorbar([x], [y], yerr=low_high, color="tab:red", marker="o", capsize=4, label="chosen, checked")
    if found.budget.kind == SPEEDUP:
        axes.axvline(1 / found.budget.limit, color="tab:red", linewidth=0.8, linestyle="--")
    else:
        axes.axhline(found.budget.limit, color="tab:red", linewidth=0.8, linestyle="--")
    axes.set_xlabel("MACs of a sample, share of the uncached")
    axes.set_ylabel(MEASURES[found.budget.measure].title)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.legend(frameon=False)
    with whole_file(Path(path)) as file:
        figure.savefig(file, format="png", dpi=144)


def _points(found: Tuned, trials: tuple[Trial, ...]) -> tuple[list[Any], list[Any]]:
    shares = [1 / found.space.speedup(trial.candidate) for trial in trials]
    return shares, [trial.estimates[found.budget.measure].value for trial in trials]
