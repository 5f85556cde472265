"""The MACs of a model's steps at its branches, and the parts that its page shares with the page of a plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Any

from deepcache.costs.macs import EVERYTHING, Convention, Cost
from deepcache.plan import IDLE, CachePlan, uniform

Plans = dict[int, CachePlan | None]  # by branch; None for no plan
_GIGA = 10**9
_SHOWN = 16  # full steps that a line lists


@dataclass(frozen=True)
class Profile:
    """The MACs of a model's steps: at all branches if none is given, and of no plan without an interval."""

    name: str
    cost: Cost
    convention: Convention
    context_tokens: int
    num_steps: int
    interval: int | None = None
    branch: int | None = None

    @property
    def plans(self) -> Plans:
        """The plan of each branch that is told; None without an interval."""
        branches = range(IDLE, self.cost.num_branches) if self.branch is None else [self.branch]
        plan = None if self.interval is None else uniform(self.num_steps, self.interval)
        return {branch: plan and replace(plan, branch=branch) for branch in branches}

    def for_machines(self) -> dict[str, Any]:
        """Return all figures as whole MACs, by name; those that end in `_with_attention` count everything."""
        cost, convention, branches = self.cost, self.convention, []
        conventions = {"": convention, "_with_attention": EVERYTHING}
        for branch, plan in self.plans.items():
            line: dict[str, Any] = {"branch": branch}
            line |= {f"shallow{end}": cost.shallow(branch, each) for end, each in conventions.items()}
            if plan is not None:
                line |= {f"mean{end}": round(cost.mean(plan, each)) for end, each in conventions.items()}
                line |= {"num_full": plan.num_full, "macs_ratio": cost.ratio(plan)}
            branches.append(line)
        return {
            "model": self.name,
            "convention": str(convention),
            "context_tokens": self.context_tokens,
            "num_steps": self.num_steps,
            "interval": self.interval,
            **{f"full{end}": cost.full(each) for end, each in conventions.items()},
            "branches": branches,
            "stages": [{"stage": s.name, "macs": s.total(convention), "attention": s.attention} for s in cost.stages],
        }

    def page(self, *, layer_wise: bool = False) -> str:
        """Return the page, with a table of all stages if `layer_wise`."""
        giga, convention = partial(giga_of, largest=self.cost.full(EVERYTHING)), self.convention
        lines = [
            *opening(self.name, self.context_tokens, self.cost, f": {convention}", self.plans, convention, giga),
            step("full step", giga(self.cost.full(convention)), "counted as above"),
            step("full step", giga(self.cost.full(EVERYTHING)), "everything counted, as for the speedup"),
        ]
        if layer_wise:
            lines += ["", f"{'stage':<28}{'MACs':>12}{'attention products':>22}"]
            for stage in self.cost.stages:
                lines.append(f"{stage.name:<28}{giga(stage.total(convention)):>12}{giga(stage.attention):>22}")
        return "\n".join(line.rstrip() for line in lines)


def opening(
    title: str,
    context_tokens: int,
    cost: Cost,
    counted: str,
    plans: Plans,
    convention: Convention,
    giga: Callable[[int | Fraction], str],
    marked: int | None = None,
) -> Iterator[str]:
    """Yield how both pages begin: a title, the full steps, what MACs count, and the table of branches."""
    plan = next(iter(plans.values()))
    yield title + (f", {context_tokens} context token{'s' * (context_tokens > 1)}" if context_tokens else "")
    if plan is not None:
        steps = plan.full_steps
        listed = [*steps[: _SHOWN - 2], "...", steps[-1]] if len(steps) > _SHOWN else steps
        yield f"{plan.num_steps} steps, of which {plan.num_full} are full: {', '.join(map(str, listed))}"
    yield f"MACs{counted}"
    yield ""
    titles = f"{'shallow step':>14}{'of full':>9}" + ("" if plan is None else f"{'mean':>14}{'speedup':>10}")
    yield f"  branch  {'adds the stages':<42}{titles}"
    for branch, each in plans.items():
        shallow, full = cost.shallow(branch, convention), cost.full(convention)
        names = ("no stage runs", "") if branch == IDLE else (cost.down[branch].name, cost.up[branch].name)
        stages = f"{names[0]:<27}{names[1]:<15}"
        line = f"{'>' if branch == marked else ' '} {branch:>6}  {stages}{giga(shallow):>14}{shallow / full:>9.1%}"
        yield line if each is None else f"{line}{giga(cost.mean(each, convention)):>14}{cost.ratio(each):>10.2f}"
    yield ""


def step(title: str, figure: str, text: str = "") -> str:
    return f"{title:<20}{figure:>16}   {text}"


def giga_of(macs: int | Fraction, largest: int) -> str:
    """Write MACs in G with two decimals, or with four where the largest figure of the page is below 1 G."""
    return f"{float(Fraction(macs) / _GIGA):,.{2 if largest >= _GIGA else 4}f} G"
