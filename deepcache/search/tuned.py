"""Budgets, and the result of `tune`: a plan, what it promises on other seeds, and the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcache.errors import DeepCacheError
from deepcache.files import whole_file
from deepcache.metrics.registry import METRICS
from deepcache.metrics.statistics import TAIL, Statistic, bootstrap
from deepcache.plan import CachePlan, told
from deepcache.search.candidates import Candidate, Space, front

SPEEDUP = "speedup"
FIDELITIES = {
    "psnr_db": METRICS["psnr_median_db"],
    "perceptual": METRICS["perceptual"],
    "clip_loss": replace(METRICS["clip_loss"], name=f"{METRICS['clip_loss'].name}, mean"),
}
# Distances between images take the median: one seed of some thirty that tips over to another image dominates the mean,
# so that few seeds cannot promise the mean. CLIP scores take the mean, as in the paper.
_STATISTICS: dict[str, Statistic] = {"psnr_db": np.median, "perceptual": np.median, "clip_loss": np.mean}


@dataclass(frozen=True)
class Estimate:
    """A fidelity from some seeds; over all seeds it lies in `low`..`high`, but for a tail at each end."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Budget:
    """One limit to keep to; a limit that is out of range is refused.

    Attributes:
        kind: "speedup", uncached over cached MACs of a sample, or a key of `FIDELITIES`.
        limit: the least speedup, above 1, or the worst fidelity, above 0.
    """

    kind: str
    limit: float

    def __post_init__(self) -> None:
        least = 1.0 if self.kind == SPEEDUP else 0.0
        if isinstance(self.limit, bool) or not isinstance(self.limit, (int, float)) or not self.limit > least:
            raise DeepCacheError(f"expected {self.kind} to be a number above {least:g}, got {self.limit!r}")

    @property
    def fidelity(self) -> str:
        """The fidelity that is measured: the budget's own kind, or PSNR where the budget is a speedup."""
        return "psnr_db" if self.kind == SPEEDUP else self.kind

    def score(self, value: float) -> float:
        """Return a value of the fidelity with such a sign that higher is better."""
        return value if FIDELITIES[self.fidelity].is_higher_better else -value

    def worse_end(self, found: Estimate) -> float:
        """Return the end of the interval that is the worse one: what the estimate promises."""
        return min(found.low, found.high, key=self.score)

    def holds(self, value: float) -> bool:
        """Return whether a value of the fidelity keeps to the limit."""
        return self.score(value) >= self.score(self.limit)


def estimate(fidelity: str, values: NDArray[np.float64], tail: float = TAIL) -> Estimate:
    """Return a fidelity over the values (B,) of seeds, with its bootstrap interval but for a tail at each end."""
    statistic = _STATISTICS[fidelity]
    return Estimate(float(statistic(values)), *bootstrap(statistic, values, tail))


@dataclass(frozen=True)
class Trial:
    """A candidate with its estimated fidelities, on seeds that the search had not seen if it `is_checked`."""

    candidate: Candidate
    estimates: dict[str, Estimate]
    num_seeds: int
    is_checked: bool


@dataclass(frozen=True)
class Tuned:
    """The plan for a budget; its text, `str(tuned)`, is the Pareto table.

    Attributes:
        chosen: the chosen candidate, estimated on seeds that the search had not seen.
        trials: the candidates that were left after the search, the cheapest first.
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
        scores = {t.candidate: self.budget.score(t.estimates[self.budget.fidelity].value) for t in self.trials}
        kept = {*front(scores), self.chosen.candidate}
        return tuple(trial for trial in self.trials if trial.candidate in kept)

    def save(self, path: str | Path) -> None:
        """Write the plan alone, as `CachePlan.save` does; it is for `scheduler` and `num_steps` of this object."""
        self.plan.save(path)

    def for_machines(self) -> dict[str, Any]:
        """Return the plan, its solver, and what it promises, by name."""
        return {
            "plan": told(self.plan),
            "scheduler": self.scheduler,
            "num_steps": self.num_steps,
            "speedup": self.speedup,
            self.budget.fidelity: asdict(self.promise),
            "seeds": list(self.check_seeds),
        }

    def __str__(self) -> str:
        title = f"the best found of at least {self.budget.limit:g} times fewer MACs"
        metric = FIDELITIES[self.budget.fidelity]
        if self.budget.kind != SPEEDUP:
            least = "at least" if metric.is_higher_better else "at most"
            title = f"the cheapest found of {metric.title} {least} {self.budget.limit:g}"
        fidelities = [FIDELITIES[name].title for name in self.chosen.estimates]
        rows = [[" ", "plan", "MACs (G)", "speedup bound", *fidelities, "seeds"], *map(self._row, self.front)]
        plan, *others = (max(map(len, column)) for column in list(zip(*rows, strict=True))[1:])
        lines = ["  ".join([mark, name.ljust(plan), *map(str.rjust, cells, others)]) for mark, name, *cells in rows]
        seeds = f"{self.check_seeds[0]}..{self.check_seeds[-1]}"
        note = (
            f"against {self.target}; brackets: where the {metric.title} of all seeds lies (95%, bootstrap);\n"
            f"the chosen plan (>) was checked on seeds {seeds}, which the search had not seen;\n"
            "the more plans were checked, the wider its interval"
        )
        return "\n".join([title, *lines, note])

    def _row(self, trial: Trial) -> list[str]:
        candidate, found = trial.candidate, []
        for name, each in trial.estimates.items():
            value, low, high = (f"{end:.{FIDELITIES[name].digits}f}" for end in (each.value, each.low, each.high))
            found.append(f"{value} [{low}, {high}]")
        speedup = f"{self.space.speedup(candidate):.2f}"
        seeds = f"{trial.num_seeds} {'checked' if trial.is_checked else 'searched'}"
        mark = ">" if trial is self.chosen else " "
        return [mark, str(candidate), f"{candidate.macs / 10**9:.4g}", speedup, *found, seeds]


def plot(found: Tuned, path: str | Path) -> None:
    """Draw the trials and their front as a PNG: the budget's fidelity over the share of the uncached MACs."""
    from matplotlib.figure import Figure  # slow to import

    def points(trials: Sequence[Trial]) -> tuple[list[float], list[float]]:
        shares = [1 / found.space.speedup(trial.candidate) for trial in trials]
        return shares, [trial.estimates[found.budget.fidelity].value for trial in trials]

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes: Any = figure.add_subplot()
    axes.scatter(*points(found.trials), s=14, color="0.7", label="tried to the end")
    axes.plot(*points(found.front), color="tab:blue", marker="o", markersize=4, label="front")
    x, y = points([found.chosen])
    ends = [[y[0] - found.promise.low], [found.promise.high - y[0]]]
    axes.errorbar(x, y, yerr=ends, color="tab:red", marker="o", capsize=4, label="chosen, checked")
    limit, is_speedup = found.budget.limit, found.budget.kind == SPEEDUP
    draw_line = axes.axvline if is_speedup else axes.axhline
    draw_line(1 / limit if is_speedup else limit, color="tab:red", linewidth=0.8, linestyle="--")
    axes.set(xlabel="MACs of a sample, share of the uncached", ylabel=FIDELITIES[found.budget.fidelity].title)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.legend(frameon=False)
    with whole_file(Path(path)) as file:
        figure.savefig(file, format="png", dpi=144)
