"""The figures of steps and plans, and the page on which `macs` and `explain` print them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from textwrap import wrap
from typing import Any

from deepcache.cache.tracking import reason
from deepcache.costs.macs import EVERYTHING, Convention, Cost
from deepcache.costs.parts import Part
from deepcache.plan import MOST_STEPS, CachePlan, require_whole, uniform

LOW_BOUND = 1.1  # a speedup that the overhead of caching may well eat
_GIGA = 10**9
_SHOWN = 16  # full steps that a line lists
_WIDTH = 100  # characters of a line
Show = Callable[[int | Fraction], str]  # writes MACs


@dataclass(frozen=True)
class Profile:
    """The MACs of a model's steps, as a page and as a dictionary for machines.

    Attributes:
        name: the model's name.
        cost: the MACs of its U-Net.
        convention: what the figures count.
        context_tokens: the length of the conditioning sequence, 0 without one.
        num_steps: U-Net calls of a generation.
        interval: N, of the plan whose mean over the steps is told; None for steps alone.
        branch: the branch that is told; None for all branches.

    Raises:
        DeepCacheError: `num_steps`, `interval` or `branch` is out of range.
    """

    name: str
    cost: Cost
    convention: Convention
    context_tokens: int
    num_steps: int
    interval: int | None = None
    branch: int | None = None

    def __post_init__(self) -> None:
        require_whole("num_steps", self.num_steps, at_least=1, at_most=MOST_STEPS)

    @property
    def plans(self) -> dict[int, CachePlan | None]:
        """The plan of each branch that is told; None without an interval."""
        branches = range(self.cost.num_branches) if self.branch is None else [self.branch]
        if self.interval is None:
            return dict.fromkeys(branches)
        return {branch: uniform(self.num_steps, self.interval, branch) for branch in branches}

    def for_machines(self) -> dict[str, Any]:
        """Return all figures as whole MACs, by name; those that end in `_with_attention` count everything."""
        counted, branches = self.cost, []
        for branch, plan in self.plans.items():
            line: dict[str, Any] = {
                "branch": branch,
                "shallow": counted.shallow(branch, self.convention),
                "shallow_with_attention": counted.shallow(branch, EVERYTHING),
            }
            if plan is not None:
                line |= {
                    "mean": round(counted.mean(plan, self.convention)),
                    "mean_with_attention": round(counted.mean(plan, EVERYTHING)),
                    "num_full": plan.num_full,
                    "macs_ratio": counted.ratio(plan),
                }
            branches.append(line)
        return {
            "model": self.name,
            "convention": str(self.convention),
            "context_tokens": self.context_tokens,
            "num_steps": self.num_steps,
            "interval": self.interval,
            "full": counted.full(self.convention),
            "full_with_attention": counted.full(EVERYTHING),
            "branches": branches,
            "stages": [
                {"stage": stage.name, "macs": stage.total(self.convention), "attention": stage.attention}
                for stage in counted.stages
            ],
        }

    def page(self, *, layer_wise: bool = False) -> str:
        """Return the page, with a table of all stages if `layer_wise`."""
        return "\n".join(line.rstrip() for line in self._lines(layer_wise=layer_wise))

    def _lines(self, *, layer_wise: bool) -> Iterator[str]:
        yield f"{self.name}{_tokens(self.context_tokens)}"
        plan = next(iter(self.plans.values()))
        if plan is not None:
            yield _full_steps(plan)
        yield f"MACs: {self.convention}"
        yield ""
        yield from _branches(self.cost, self.plans, self.convention, _giga)
        yield ""
        yield _step("full step", _giga(self.cost.full(self.convention)), "counted as above")
        yield _step("full step", _giga(self.cost.full(EVERYTHING)), "everything counted, as for the speedup")
        if layer_wise:
            yield ""
            yield f"{'stage':<28}{'MACs':>12}{'attention products':>22}"
            for stage in self.cost.stages:
                yield f"{stage.name:<28}{_giga(stage.total(self.convention)):>12}{_giga(stage.attention):>22}"


@dataclass(frozen=True)
class Explanation:
    """What a plan costs on a pipeline; `str` of it is a page of at most 100 characters a line.

    MACs count everything (`deepcache.costs.macs.EVERYTHING`). The bound on a speedup is uncached over cached MACs, the
    speedup if time went as MACs. Without that assumption the bound is steps over full steps.

    Attributes:
        name: the name of the pipeline or the model.
        unet: the class of its U-Net.
        sample: the shape of one sample, as the U-Net takes it.
        context_tokens: the length of the conditioning sequence, 0 without one.
        plan: the full steps, branch and order.
        cost: the MACs of the U-Net.
        enters: the name of the module that the feature enters.
        feature: the shapes of a feature's tensors, for one sample.
        bytes_each: the bytes of a feature, for one sample.
        parts: the text encoders and the decoder.
        uncounted: the networks of the pipeline that no figure counts.
        may_guide: whether the pipeline can use guidance, which gives every step two samples for each image.
    """

    name: str
    unet: str
    sample: tuple[int, ...]
    context_tokens: int
    plan: CachePlan
    cost: Cost
    enters: str
    feature: tuple[tuple[int, ...], ...]
    bytes_each: int
    parts: tuple[Part, ...]
    uncounted: tuple[str, ...]
    may_guide: bool

    @property
    def full(self) -> int:
        """MACs of a full step for one sample."""
        return self.cost.full(EVERYTHING)

    @property
    def shallow(self) -> int:
        """MACs of a shallow step for one sample."""
        return self.cost.shallow(self.plan.branch, EVERYTHING)

    @property
    def mean(self) -> Fraction:
        """MACs of a step for one sample, as the mean over the plan's steps."""
        return self.cost.mean(self.plan, EVERYTHING)

    def unet_macs(self, *, cached: bool, guided: bool = False) -> Fraction:
        """Return the MACs of all steps for one image, cached or not, with guidance or without."""
        return (1 + guided) * self.plan.num_steps * (self.mean if cached else Fraction(self.full))

    def bound(self, *, whole: bool = True, guided: bool = False) -> float:
        """Return uncached over cached MACs of the whole pipeline, or of its U-Net alone."""
        rest = sum(part.of_image(guided=guided) for part in self.parts) if whole else 0
        uncached = self.unet_macs(cached=False, guided=guided) + rest
        return float(uncached / (self.unet_macs(cached=True, guided=guided) + rest))

    @property
    def num_kept(self) -> int:
        """How many features are kept at once."""
        return min(self.plan.order + 1, self.plan.num_full)

    @property
    def feature_bytes(self) -> int:
        """The most bytes that are kept at once, for one sample."""
        return self.num_kept * self.bytes_each

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences that say why the plan cannot pay, or cannot do what it is meant to."""
        num_steps, num_full, order = self.plan.num_steps, self.plan.num_full, self.plan.order
        why = reason(num_full, num_steps)
        found = [] if why is None else [why]
        if num_full == num_steps:
            return tuple(found)
        best = self.bound(guided=self.may_guide)
        if best < LOW_BOUND:
            found.append(f"{best:.2f} times faster at best; fewer full steps or a lower branch gain more")
        if num_full == 1:
            found.append(f"step 0 alone is full, so that its feature must serve all {num_steps} steps")
        if num_full <= order:
            found.append(f"order {order} takes {order + 1} full steps to come into force; this plan has {num_full}")
        return tuple(found)

    def __str__(self) -> str:
        return "\n".join(line.rstrip() for line in self._lines())

    def _lines(self) -> Iterator[str]:
        plan = self.plan
        yield f"{self.name}: {self.unet}, sample {_by(self.sample[1:])}{_tokens(self.context_tokens)}"
        yield _full_steps(plan)
        yield "MACs count everything: convolutions, linear layers, norms and attention products"
        yield ""
        plans = {branch: replace(plan, branch=branch) for branch in range(self.cost.num_branches)}
        yield from _branches(self.cost, plans, EVERYTHING, self._giga, plan.branch)
        yield ""
        yield _step("full step", self._giga(self.full))
        yield _step("shallow step", self._giga(self.shallow), f"at branch {plan.branch}")
        yield _step("mean of all steps", self._giga(self.mean))
        kept = f"order {plan.order} keeps {self.num_kept}, each {', '.join(map(_by, self.feature))} a sample"
        yield _step("features", f"{self.feature_bytes / 2**20:,.2f} MiB", kept)
        yield _step("", "", f"taken where {self.enters} begins")
        yield ""
        yield from self._images()
        for line in self.warnings:
            yield from wrap(f"warning: {line}", _WIDTH, subsequent_indent=" " * len("warning: "))

    def _images(self) -> Iterator[str]:
        """Tell the MACs of one image and the bounds on the speedup, without and with guidance."""
        kinds = (False, True) if self.may_guide else (False,)

        def row(title: str, *cells: str) -> str:
            return f"{title:<52}" + "".join(f"{cell:>20}" for cell in cells)

        titles = ("without guidance", "with guidance") if self.may_guide else ("",)
        yield row(f"MACs of one {'image' if len(self.sample) == len('BCHW') else 'video'}", *titles)
        for cached in (False, True):
            macs = (self.unet_macs(cached=cached, guided=guided) for guided in kinds)
            title = f"U-Net, {'cached' if cached else 'uncached'}, {self.plan.num_steps} steps"
            yield row(title, *map(self._giga, macs))
        for part in self.parts:
            yield row(part.name, *(self._giga(part.of_image(guided=guided)) for guided in kinds))
        if self.uncounted:
            yield from wrap(f"not counted: {', '.join(self.uncounted)}", _WIDTH)
        yield ""
        yield row("bound on the speedup, if time goes as MACs", *titles)
        yield row("U-Net alone", *(f"{self.bound(whole=False, guided=guided):.2f}" for guided in kinds))
        if self.parts:
            names = ", ".join(["U-Net", *(part.name for part in self.parts)])
            yield row(names, *(f"{self.bound(guided=guided):.2f}" for guided in kinds))
        free = f"{self.plan.num_steps / self.plan.num_full:.2f}"
        yield row("U-Net alone, if shallow steps took no time", *[free] * len(kinds))
        if self.may_guide:
            encoders = ", and the text encoders run twice" * any(part.is_guided for part in self.parts)
            yield f"With guidance every step runs the U-Net on two samples{encoders}."

    def _giga(self, macs: int | Fraction) -> str:
        return _giga(macs, self.full)


def _branches(
    cost: Cost, plans: Mapping[int, CachePlan | None], convention: Convention, show: Show, marked: int | None = None
) -> Iterator[str]:
    """Yield the table of branches: stages, shallow step and, where there is a plan, mean and speedup.

    Args:
        cost: the MACs of the U-Net.
        plans: the plan of each branch that is shown.
        convention: what the MACs count; the speedup counts everything.
        show: writes MACs.
        marked: the branch that is marked.
    """
    is_planned = any(plan is not None for plan in plans.values())
    titles = f"{'shallow step':>14}{'of full':>9}" + f"{'mean':>14}{'speedup':>10}" * is_planned
    yield f"  branch  {'adds the stages':<42}{titles}"
    for branch, plan in plans.items():
        shallow, full = cost.shallow(branch, convention), cost.full(convention)
        stages = f"{cost.down[branch].name:<27}{cost.up[branch].name:<15}"
        line = f"{'>' if branch == marked else ' '} {branch:>6}  {stages}{show(shallow):>14}{shallow / full:>9.1%}"
        yield line if plan is None else f"{line}{show(cost.mean(plan, convention)):>14}{cost.ratio(plan):>10.2f}"


def _full_steps(plan: CachePlan) -> str:
    steps = plan.full_steps
    listed = [*steps[: _SHOWN - 2], "...", steps[-1]] if len(steps) > _SHOWN else steps
    return f"{plan.num_steps} steps, of which {plan.num_full} are full: {', '.join(map(str, listed))}"


def _step(title: str, figure: str, text: str = "") -> str:
    return f"{title:<20}{figure:>16}   {text}"


def _tokens(number: int) -> str:
    return f", {number} context token{'s' * (number > 1)}" if number else ""


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _giga(macs: int | Fraction, largest: int | Fraction | None = None) -> str:
    """Write MACs in G with two decimals, or with four where the largest figure of the page is below 1 G."""
    return f"{float(Fraction(macs) / _GIGA):,.{2 if (macs if largest is None else largest) >= _GIGA else 4}f} G"
