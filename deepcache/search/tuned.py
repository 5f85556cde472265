"""What tuning found: the plan, what it promises of other seeds, and the front that it was chosen from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deepcache.plan import CachePlan
from deepcache.search.budget import MEASURES, SPEEDUP, Budget, Estimate
from deepcache.search.candidates import Candidate, Space
from deepcache.search.halving import front

_GIGA = 10**9


@dataclass(frozen=True)
class Trial:
    """A candidate with its estimates by measure, from `num_seeds` seeds; `is_checked` if others than the search's."""

    candidate: Candidate
    estimates: dict[str, Estimate]
    num_seeds: int
    is_checked: bool


@dataclass(frozen=True)
class Tuned:
    """`str` of it is the Pareto table.

    Attributes:
        budget: what was asked for.
        chosen: its estimates are of seeds that the search had not seen.
        trials: what was left after the search, the cheapest first.
        space: what was searched.
        search_seeds, check_seeds: evaluate on others.
        target: what images were compared with, and by what.
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
        """For `deepcache.cached`."""
        return self.chosen.candidate.plan

    @property
    def scheduler(self) -> str | None:
        """The solver by its name in `deepcache.sampling.SCHEDULERS`; None for the pipeline's own."""
        return self.chosen.candidate.way.scheduler

    @property
    def num_steps(self) -> int:
        """Of the solver."""
        return self.chosen.candidate.way.num_steps

    @property
    def speedup(self) -> float:
        """Uncached over cached MACs of a sample: the speedup, if time were MACs. Exact."""
        return self.space.speedup(self.chosen.candidate)

    @property
    def promise(self) -> Estimate:
        """The interval in which the budget's measure over all seeds lies; of a speedup, the PSNR's."""
        return self.chosen.estimates[self.budget.measure]

    @property
    def front(self) -> tuple[Trial, ...]:
        """The trials that nothing as cheap was better than, the cheapest first, and the chosen one."""
        sign = 1 if MEASURES[self.budget.measure].is_higher_better else -1
        scores = {t.candidate: sign * t.estimates[self.budget.measure].value for t in self.trials}
        kept = {*front(scores), self.chosen.candidate}
        return tuple(trial for trial in self.trials if trial.candidate in kept)

    def save(self, path: str | Path) -> None:
        """`CachePlan.save` of the plan alone: it is for the `scheduler` and `num_steps` above."""
        self.plan.save(path)

    def __str__(self) -> str:
        measure = self.budget.measure
        names = list(self.chosen.estimates)
        head = ["", "plan", "MACs (G)", "speedup bound", *(MEASURES[name].title for name in names), "seeds"]
        rows = [head, *(self._row(trial, names) for trial in self.front)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = ["  ".join([row[0], row[1].ljust(widths[1]), *_right(row[2:], widths[2:])]) for row in rows]
        lines[0] = " " + lines[0]
        return "\n".join([self._title(), *lines, self._note(measure)])

    def _row(self, trial: Trial, names: list[str]) -> list[str]:
        found = [_shown(name, trial.estimates[name]) for name in names]
        seeds = f"{trial.num_seeds} {'checked' if trial.is_checked else 'searched'}"
        macs, speedup = trial.candidate.macs / _GIGA, self.space.speedup(trial.candidate)
        mark = ">" if trial is self.chosen else " "
        return [mark, str(trial.candidate), f"{macs:.4g}", f"{speedup:.2f}", *found, seeds]

    def _title(self) -> str:
        if self.budget.kind == SPEEDUP:
            return f"the best found of at least {self.budget.limit:g} times fewer MACs"
        least = "at least" if MEASURES[self.budget.kind].is_higher_better else "at most"
        title = MEASURES[self.budget.kind].title
        return f"the cheapest found of {title} {least} {self.budget.limit:g}"

    def _note(self, measure: str) -> str:
        return (
            f"against {self.target}; in brackets where the {MEASURES[measure].title} of all seeds lies\n"
            f"(95%, bootstrap); the chosen plan's (>) is from seeds {self.check_seeds[0]}..{self.check_seeds[-1]}, "
            "which the search\nhad not seen, and the wider the more plans were checked"
        )


def _shown(name: str, found: Estimate) -> str:
    digits = MEASURES[name].digits
    return f"{found.value:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def _right(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
