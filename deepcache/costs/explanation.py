"""What a plan costs and can gain: the figures, and a page of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from textwrap import wrap

from deepcache.costs.parts import Part
from deepcache.plan import CachePlan

FEW_STEPS = 4  # of the models made for so few: LCM, Turbo, Lightning
LOW_BOUND = 1.1  # a speedup that the overhead of caching may well eat
_GIGA = 10**9
_SHOWN = 16  # full steps
_WIDTH = 100  # of the page


@dataclass(frozen=True)
class Branch:
    """One branch: the down and the up stage that it adds to a shallow step, and that step's MACs for one sample."""

    down: str
    up: str
    macs: int


@dataclass(frozen=True)
class Explanation:
    """A plan's costs on a pipeline; `str` of it is a page of at most 100 characters a line.

    MACs count everything (`deepcache.costs.macs.EVERYTHING`). The bound on a speedup is uncached over cached MACs: what
    time would gain if it went as MACs. Without that assumption it is steps over full steps.

    Attributes:
        name: of the pipeline or the model.
        unet: its class.
        sample: the shape of one sample, as the U-Net takes it.
        context_tokens: length of the conditioning sequence, 0 without one.
        plan: the full steps, branch and order.
        branches: all of them, outermost first.
        full: MACs of a full step for one sample.
        enters: the module that the feature enters.
        feature: the shapes of a feature's tensors, for one sample.
        bytes_each: of a feature, for one sample.
        parts: text encoders and decoder.
        uncounted: networks of the pipeline that are in none of the figures.
        may_guide: whether guidance is an option, which gives every step two samples an image.
    """

    name: str
    unet: str
    sample: tuple[int, ...]
    context_tokens: int
    plan: CachePlan
    branches: tuple[Branch, ...]
    full: int
    enters: str
    feature: tuple[tuple[int, ...], ...]
    bytes_each: int
    parts: tuple[Part, ...]
    uncounted: tuple[str, ...]
    may_guide: bool

    def shallow(self, branch: int | None = None) -> int:
        """MACs of a shallow step for one sample, at the plan's branch if None."""
        return self.branches[self.plan.branch if branch is None else branch].macs

    def mean(self, branch: int | None = None) -> Fraction:
        """MACs of a step for one sample, mean over the plan's steps."""
        shallow = self.shallow(branch)
        return shallow + Fraction(self.plan.num_full, self.plan.num_steps) * (self.full - shallow)

    def unet_macs(self, *, cached: bool, guided: bool = False) -> Fraction:
        """MACs of all steps for one image."""
        return (1 + guided) * self.plan.num_steps * (self.mean() if cached else Fraction(self.full))

    def bound(self, *, whole: bool = True, guided: bool = False) -> float:
        """Uncached over cached MACs, of the whole pipeline or of its U-Net alone."""
        rest = sum(part.of_image(guided=guided) for part in self.parts) if whole else 0
        uncached = self.unet_macs(cached=False, guided=guided) + rest
        return float(uncached / (self.unet_macs(cached=True, guided=guided) + rest))

    @property
    def num_kept(self) -> int:
        """How many features are kept at once."""
        return min(self.plan.order + 1, self.plan.num_full)

    @property
    def feature_bytes(self) -> int:
        """The most that is kept at once, for one sample."""
        return self.num_kept * self.bytes_each

    @property
    def warnings(self) -> tuple[str, ...]:
        """Why the plan cannot pay, or cannot do what it is meant to."""
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
        return "\n".join(line.rstrip() for line in _page(self))


def reason(num_full: int, num_steps: int) -> str | None:
    """Why so many full steps out of so many cannot pay; None where they can."""
    if num_full == num_steps:
        steps = "the only step is" if num_steps == 1 else f"all {num_steps} steps are"
        return f"{steps} full, so that nothing is cached"
    if num_steps <= FEW_STEPS:
        return (
            f"{num_steps} steps, as few-step models (LCM, Turbo) take, lie too far apart to share a feature; "
            "sample without a cache"
        )
    return None


def _page(found: Explanation) -> Iterator[str]:
    plan, tokens = found.plan, found.context_tokens
    context = f", {tokens} context token{'s' * (tokens > 1)}" if tokens else ""
    yield f"{found.name}: {found.unet}, sample {_by(found.sample[1:])}{context}"
    yield f"{plan.num_steps} steps, of which {plan.num_full} are full: {_listed(plan.full_steps)}"
    yield "MACs count everything: convolutions, linear layers, norms and attention products"
    yield ""
    yield from _branches(found)
    yield ""
    yield from _steps(found)
    yield ""
    yield from _images(found)
    for line in found.warnings:
        yield from wrap(f"warning: {line}", _WIDTH, subsequent_indent=" " * len("warning: "))


def _branches(found: Explanation) -> Iterator[str]:
    yield f"  branch  {'adds the stages':<50}{'shallow step':>14}{'of full':>10}{'speedup':>10}"
    for b, branch in enumerate(found.branches):
        mark = ">" if b == found.plan.branch else " "
        share, speedup = branch.macs / found.full, float(found.full / found.mean(b))
        stages = f"{branch.down:<27}{branch.up:<23}"
        yield f"{mark} {b:>6}  {stages}{_giga(found, branch.macs):>14}{share:>10.1%}{speedup:>10.2f}"


def _steps(found: Explanation) -> Iterator[str]:
    plan = found.plan
    yield f"{'full step':<20}{_giga(found, found.full):>16}"
    yield f"{'shallow step':<20}{_giga(found, found.shallow()):>16}   at branch {plan.branch}"
    yield f"{'mean of all steps':<20}{_giga(found, found.mean()):>16}"
    kept = f"order {plan.order} keeps {found.num_kept}, each {', '.join(map(_by, found.feature))} a sample"
    yield f"{'features':<20}{found.feature_bytes / 2**20:>12,.2f} MiB   {kept}"
    yield f"{'':<39}taken where {found.enters} begins"


def _images(found: Explanation) -> Iterator[str]:
    plan, kinds = found.plan, (False, True) if found.may_guide else (False,)

    def row(title: str, *cells: str) -> str:
        return f"{title:<52}" + "".join(f"{cell:>20}" for cell in cells)

    titles = ("without guidance", "with guidance")[: len(kinds)] if found.may_guide else ("",)
    yield row(f"MACs of one {'image' if len(found.sample) == len('BCHW') else 'video'}", *titles)
    for cached in (False, True):
        macs = (found.unet_macs(cached=cached, guided=guided) for guided in kinds)
        title = f"U-Net, {'cached' if cached else 'uncached'}, {plan.num_steps} steps"
        yield row(title, *(_giga(found, value) for value in macs))
    for part in found.parts:
        yield row(part.name, *(_giga(found, part.of_image(guided=guided)) for guided in kinds))
    if found.uncounted:
        yield from wrap(f"not counted: {', '.join(found.uncounted)}", _WIDTH)
    yield ""
    yield row("bound on the speedup, if time goes as MACs", *titles)
    yield row("U-Net alone", *(f"{found.bound(whole=False, guided=guided):.2f}" for guided in kinds))
    if found.parts:
        names = ", ".join(["U-Net", *(part.name for part in found.parts)])
        yield row(names, *(f"{found.bound(guided=guided):.2f}" for guided in kinds))
    yield row("U-Net alone, if shallow steps took no time", *[f"{plan.num_steps / plan.num_full:.2f}"] * len(kinds))
    if found.may_guide:
        encoders = ", and the text encoders run twice" * any(part.is_guided for part in found.parts)
        yield f"With guidance every step runs the U-Net on two samples{encoders}."


def _listed(steps: tuple[int, ...]) -> str:
    shown = [*steps[: _SHOWN - 2], "...", steps[-1]] if len(steps) > _SHOWN else steps
    return ", ".join(map(str, shown))


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _giga(found: Explanation, macs: int | Fraction) -> str:
    """The same number of decimals on the whole page: two, or four where the U-Net is small."""
    return f"{float(macs / _GIGA):,.{2 if found.full >= _GIGA else 4}f} G"
