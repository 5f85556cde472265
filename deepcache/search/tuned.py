"""The result of `tune`: a plan, what it promises on other seeds, and the Pareto front, as a table and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepcache.errors import needs
from deepcache.files import whole_file
from deepcache.plan import CachePlan
from deepcache.search.budget import FIDELITIES, SPEEDUP, Budget, Estimate
from deepcache.search.candidates import Candidate, Space, front

_GIGA = 10**9


@dataclass(frozen=True)
class Trial:
    """A candidate with its estimated fidelities.

    Attributes:
        candidate: what was sampled.
        estimates: for each key of `FIDELITIES` that was measured.
        num_seeds: how many seeds were sampled.
        is_checked: whether the search had not seen these seeds.
    """

    candidate: Candidate
    estimates: dict[str, Estimate]
    num_seeds: int
    is_checked: bool


@dataclass(frozen=True)
class Tuned:
    """The plan for a budget; its text, `str(tuned)`, is the Pareto table.

    Attributes:
        budget: what was asked for.
        chosen: the chosen candidate, estimated on seeds that the search had not seen.
        trials: the candidates that were left after the search, the cheapest first.
        space: what was searched.
        search_seeds, check_seeds: the seeds that were sampled; evaluate on other seeds.
        target: what images were compared with, and by which distance.
    """

    budget: Budget
    chosen: Trial
    trials: tuple[Trial, ...]
    space: Space
    search_seeds: Sequence[int]
    check_seeds: Sequence[int]
    target: str

    @property
    def plan(self) -> CachePlan:
        """The plan, for `deepcache.cached`."""
        return self.chosen.candidate.plan

    @property
    def scheduler(self) -> str | None:
        """The solver's name, a key of `deepcache.sampling.schedulers.SCHEDULERS`; None for the pipeline's own."""
        return self.chosen.candidate.sampling.scheduler

    @property
    def num_steps(self) -> int:
        """The number of the solver's steps."""
        return self.chosen.candidate.sampling.num_steps

    @property
    def speedup(self) -> float:
        """Uncached over cached MACs of a sample, exactly: the speedup, if time were MACs."""
        return self.space.speedup(self.chosen.candidate)

    @property
    def promise(self) -> Estimate:
        """The interval of the budget's fidelity over all seeds; of PSNR where the budget is a speedup."""
        return self.chosen.estimates[self.budget.fidelity]

    @property
    def front(self) -> tuple[Trial, ...]:
        """The Pareto front of the trials, the cheapest first, with the chosen trial."""
        sign = 1 if FIDELITIES[self.budget.fidelity].is_higher_better else -1
        scores = {t.candidate: sign * t.estimates[self.budget.fidelity].value for t in self.trials}
        kept = {*front(scores), self.chosen.candidate}
        return tuple(trial for trial in self.trials if trial.candidate in kept)

    def save(self, path: str | Path) -> None:
        """Write the plan alone, as `CachePlan.save` does; it is for `scheduler` and `num_steps` of this object."""
        self.plan.save(path)

    def __str__(self) -> str:
        fidelity = self.budget.fidelity
        names = list(self.chosen.estimates)
        head = ["", "plan", "MACs (G)", "speedup bound", *(FIDELITIES[name].title for name in names), "seeds"]
        rows = [head, *(self._row(trial, names) for trial in self.front)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = ["  ".join([row[0], row[1].ljust(widths[1]), *_right(row[2:], widths[2:])]) for row in rows]
        lines[0] = " " + lines[0]
        return "\n".join([self._title(), *lines, self._note(fidelity)])

    def _row(self, trial: Trial, names: list[str]) -> list[str]:
        found = [_shown(name, trial.estimates[name]) for name in names]
        seeds = f"{trial.num_seeds} {'checked' if trial.is_checked else 'searched'}"
        macs, speedup = trial.candidate.macs / _GIGA, self.space.speedup(trial.candidate)
        mark = ">" if trial is self.chosen else " "
        return [mark, str(trial.candidate), f"{macs:.4g}", f"{speedup:.2f}", *found, seeds]

    def _title(self) -> str:
        if self.budget.kind == SPEEDUP:
            return f"the best found of at least {self.budget.limit:g} times fewer MACs"
        least = "at least" if FIDELITIES[self.budget.kind].is_higher_better else "at most"
        title = FIDELITIES[self.budget.kind].title
        return f"the cheapest found of {title} {least} {self.budget.limit:g}"

    def _note(self, fidelity: str) -> str:
        return (
            f"against {self.target}; in brackets where the {FIDELITIES[fidelity].title} of all seeds lies\n"
            f"(95%, bootstrap); the chosen plan's (>) is from seeds {self.check_seeds[0]}..{self.check_seeds[-1]}, "
            "which the search\nhad not seen, and the wider the more plans were checked"
        )


def _shown(name: str, found: Estimate) -> str:
    digits = FIDELITIES[name].digits
    return f"{found.value:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def _right(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]


def require_matplotlib() -> None:
    """Refuse to plot without matplotlib.

    Raises:
        DeepCacheError: matplotlib is not installed.
    """
    with needs("a plot", "bench"):
        import matplotlib  # noqa: F401


def plot(found: Tuned, path: str | Path) -> None:
    """Draw the trials and their front as a PNG: the budget's fidelity over the share of the uncached MACs.

    Args:
        found: the result of `tune`.
        path: the file to write.

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
    axes.set_ylabel(FIDELITIES[found.budget.fidelity].title)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.legend(frameon=False)
    with whole_file(Path(path)) as file:
        figure.savefig(file, format="png", dpi=144)


def _points(found: Tuned, trials: tuple[Trial, ...]) -> tuple[list[Any], list[Any]]:
    shares = [1 / found.space.speedup(trial.candidate) for trial in trials]
    return shares, [trial.estimates[found.budget.fidelity].value for trial in trials]
