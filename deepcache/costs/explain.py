"""`explain` works out what a plan costs on a pipeline before anything runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import partial
from itertools import chain
from textwrap import wrap
from typing import Any

from torch import Tensor, nn

from deepcache.cache.tracking import reason
from deepcache.costs.macs import EVERYTHING, Cost, counted
from deepcache.costs.parts import Part, num_tokens, parts, pixels_a_side
from deepcache.costs.profile import Plans, giga_of, opening, step
from deepcache.errors import DeepCacheError, guessed, one_line
from deepcache.plan import IDLE, CachePlan, Interval, highest, told, uniform
from deepcache.unets.calls import Call, named, one_sample, parameters, sample_of
from deepcache.unets.family import Stage
from deepcache.unets.output import Form
from deepcache.unets.pipelines import unet_of
from deepcache.unets.registry import cut, family_of, nest_of
from deepcache.unets.structure import on_meta

LOW_BOUND = 1.1  # a speedup that the overhead of caching may well eat
_WIDTH = 100  # characters of a line
_KINDS = ("without_guidance", "with_guidance")


def explain(
    owner: Any,
    plan: CachePlan | Interval | int,
    num_steps: int | None = None,
    *,
    name: str | None = None,
    context_tokens: int | None = None,
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
    call: Call | None = None,
) -> Explanation:
    """Work out what a plan costs on a pipeline, and the bound on its speedup. Nothing is computed but shapes.

        print(explain(pipe, 3, num_steps=50))

    Args:
        owner: a diffusers pipeline, anything with a `.unet`, or a bare U-Net; with weights or on the meta device.
        plan: the full steps, branch and order; a number is an interval, at branch 0.
        num_steps: U-Net calls of a generation; None means those of the plan, or else the pipeline's default.
        name: the name on the page; None means the class of the pipeline.
        context_tokens: the length of a prompt; None means as the tokenizer says, else 77, or 1 without text.
        height, width: of the image in pixels, or of a bare U-Net's sample; None means those of the configuration.
        num_frames: the length of a video; None means that of the configuration, or else 16.
        call: positional and keyword arguments of a U-Net call, instead of those that the configuration tells.

    Raises:
        DeepCacheError: an argument is out of range, or the number of steps is not known.
        UnsupportedUNetError: the U-Net cannot be cached, or its configuration does not tell its inputs.
    """
    outer, unet = unet_of(owner)
    chosen = _plan(owner, plan, num_steps)
    is_idle = chosen.branch == IDLE
    cut(unet, chosen.branch)  # refuses what cannot be cut
    size = None
    if height is not None and width is not None:
        size = height // pixels_a_side(owner), width // pixels_a_side(owner)
    elif (height is None) != (width is None):
        raise DeepCacheError(f"expected height and width together, got height {height!r} and width {width!r}")
    remedy = "pass call=(args, kwargs), the arguments of a U-Net call, or generate once before you ask"
    family = family_of(unet)
    problem = guessed(remedy)
    if call is not None:
        problem = one_line(
            "this U-Net does not run without data, by which its MACs are counted",
            "explain it before it is quantised, or count the MACs of its configuration: deepcache explain",
        )
    with problem:
        if call is None:
            tokens = context_tokens or (None if owner is outer else num_tokens(owner))
            args, kwargs = family.example(unet, context_tokens=tokens, size=size, num_frames=num_frames)
        else:
            args, kwargs = one_sample(*call)
        twin = on_meta(unet)
        output, feature = cut(twin, chosen.branch).full(*args, **kwargs)
        nest = nest_of(twin, (args, kwargs))
        cost = counted(twin, args, kwargs, nest)
    _, outputs = Form.of(output)
    if is_idle:
        feature = outputs
    enters = "the output" if is_idle else _entered(twin, nest.up[chosen.branch])
    given = named(unet, args, kwargs)
    sample = tuple(sample_of(args, kwargs, outputs[0]).shape)
    itemsize = next((weight.dtype.itemsize for weight in unet.parameters()), outputs[0].dtype.itemsize)
    context = given.get("encoder_hidden_states")
    others = parts(owner, sample[-2:], family.num_frames(unet, sample), context_tokens)
    takes_context = "encoder_hidden_states" in parameters(unet.__class__)
    return Explanation(
        name=name or type(owner).__name__,
        unet=type(unet).__name__,
        sample=sample,
        context_tokens=context.shape[1] if isinstance(context, Tensor) else 0,
        plan=chosen,
        cost=cost,
        enters=enters,
        feature=tuple(
            tuple(tensor.shape[1:] if tensor.ndim and len(tensor) == 1 else tensor.shape) for tensor in feature
        ),
        bytes_each=itemsize * sum(tensor.numel() for tensor in feature),
        output_bytes=itemsize * sum(tensor.numel() for tensor in outputs),
        parts=tuple(others[0]),
        uncounted=tuple(others[1]),
        may_guide=takes_context and not getattr(getattr(unet, "config", None), "time_cond_proj_dim", None),
    )


def _entered(network: nn.Module, stage: Stage) -> str:
    """Return the place where a feature enters the stage: where its first module begins, or what it leaves out ends."""
    if not stage.modules:
        return f"where {stage.name} ends"
    path = next(path for path, module in network.named_modules() if module is stage.modules[0])
    return f"where {path} begins"


def _plan(owner: Any, plan: CachePlan | Interval | int, num_steps: int | None) -> CachePlan:
    """Return the plan that the arguments of `explain` stand for."""
    if isinstance(plan, CachePlan):
        if num_steps not in (None, plan.num_steps):
            raise DeepCacheError(f"the plan is for {plan.num_steps} U-Net calls, and num_steps is {num_steps!r}")
        return plan
    every = plan if isinstance(plan, Interval) else Interval(plan)
    if num_steps is None and callable(owner):
        num_steps = getattr(inspect.signature(owner).parameters.get("num_inference_steps"), "default", None)
    if num_steps is None:
        raise DeepCacheError("expected num_steps, the number of U-Net calls; only pipelines have a default")
    return uniform(num_steps, **asdict(every))


@dataclass(frozen=True)
class Explanation:
    """An explanation tells what a plan costs on a pipeline; `str` gives a page of at most 100 characters a line.

    Shapes and bytes are those of one sample. A feature is taken at the place that `enters` names; no figure counts the
    networks that are `uncounted`. Where the pipeline `may_guide`, every step can have two samples for each image.
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
    output_bytes: int
    parts: tuple[Part, ...]
    uncounted: tuple[str, ...]
    may_guide: bool

    @property
    def full(self) -> int:
        """MACs of a full step for one sample."""
        return self.cost.full(EVERYTHING)

    def unet_macs(self, *, cached: bool, guided: bool = False) -> Fraction:
        """Return the MACs of all steps for one image, cached or not, with guidance or without."""
        mean = self.cost.mean(self.plan, EVERYTHING) if cached else Fraction(self.full)
        return (1 + guided) * self.plan.num_steps * mean

    def bound(self, *, whole: bool = True, guided: bool = False) -> float:
        """Return uncached over cached MACs of the whole pipeline, or of its U-Net alone."""
        rest = sum(part.of_image(guided=guided) for part in self.parts) if whole else 0
        uncached = self.unet_macs(cached=False, guided=guided) + rest
        return float(uncached / (self.unet_macs(cached=True, guided=guided) + rest))

    @property
    def feature_bytes(self) -> int:
        """The most bytes of features and outputs that are kept at once, for one sample."""
        return self._num_kept * self.bytes_each + self._num_outputs * self.output_bytes

    @property
    def _num_kept(self) -> int:
        return min(highest(self.plan.order) + 1, self.plan.num_full)

    @property
    def _num_outputs(self) -> int:
        """The number of outputs that are kept beside features, for the idle steps of a plan that has shallow ones."""
        if self.plan.branch == IDLE or not self.plan.num_idle:
            return 0
        return min(highest(self.plan.order) + 1, self.plan.num_full + self.plan.num_shallow)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences that say why the plan cannot pay, or cannot do what it is meant to."""
        num_steps, num_full, order = self.plan.num_steps, self.plan.num_full, self.plan.order
        found, best = [reason(num_full, num_steps)], self.bound(guided=self.may_guide)
        if num_full < num_steps and best < LOW_BOUND:
            found.append(f"{best:.2f} times faster at best; fewer full steps or a lower branch gain more")
        if num_full == 1 < num_steps:
            found.append(f"step 0 alone is full, so that its feature must serve all {num_steps} steps")
        if order != "auto" and num_full <= order and num_full < num_steps:
            found.append(f"order {order} takes {order + 1} full steps to come into force; this plan has {num_full}")
        return tuple(filter(None, found))

    def for_machines(self) -> dict[str, Any]:
        """Return the plan and all figures by name: whole MACs and bytes of one sample, and bounds on the speedup."""
        as_they_are = ("name", "unet", "sample", "context_tokens", "full", "feature_bytes", "uncounted", "warnings")
        return {name: getattr(self, name) for name in as_they_are} | {
            "plan": told(self.plan),
            "shallow": self.cost.shallow(self.plan.branch, EVERYTHING),
            "mean": round(self.cost.mean(self.plan, EVERYTHING)),
            "parts": {part.name: part.macs for part in self.parts},
            "bound": {_KINDS[guided]: self.bound(guided=guided) for guided in (False, True)[: 1 + self.may_guide]},
            "unet_bound": self.bound(whole=False),
        }

    def __str__(self) -> str:
        plan, giga = self.plan, partial(giga_of, largest=self.full)
        sample, *features = (" x ".join(map(str, shape)) for shape in (self.sample[1:], *self.feature))
        branches = range(IDLE, self.cost.num_branches)
        plans: Plans = {branch: replace(plan, branch=branch, idle_steps=()) for branch in branches}
        title, counted = (
            f"{self.name}: {self.unet}, sample {sample}",
            " count everything: convolutions, linear layers, norms and attention products",
        )
        kept = f"order {plan.order} keeps {self._num_kept}, each {', '.join(features)} a sample"
        kept += f", and {self._num_outputs} output{'s' * (self._num_outputs > 1)}" * (self._num_outputs > 0)
        warned = (wrap(f"warning: {line}", _WIDTH, subsequent_indent=" " * len("warning: ")) for line in self.warnings)
        lines = [
            *opening(title, self.context_tokens, self.cost, counted, plans, EVERYTHING, giga, plan.branch),
            step("full step", giga(self.full)),
            *self._between(giga),
            step("mean of all steps", giga(self.cost.mean(plan, EVERYTHING))),
            step("features", f"{self.feature_bytes / 2**20:,.2f} MiB", kept),
            step("", "", "of the U-Net's output" if plan.branch == IDLE else f"taken {self.enters}"),
            "",
            *self._images(),
            *chain(*warned),
        ]
        return "\n".join(line.rstrip() for line in lines)

    def _between(self, giga: Callable[..., str]) -> Iterator[str]:
        """Tell what runs on the steps that are not full."""
        plan = self.plan
        if plan.num_shallow:
            yield step("shallow step", giga(self.cost.shallow(plan.branch, EVERYTHING)), f"at branch {plan.branch}")
        if plan.num_idle:
            yield step("idle step", giga(0), "no module runs, so that noise which a solver adds is not seen")

    def _images(self) -> Iterator[str]:
        """Tell the MACs of one image and the bounds on the speedup, without and with guidance."""
        kinds = {False: "without guidance", True: "with guidance"} if self.may_guide else {False: ""}

        def row(title: str, cell: Callable[[bool], str] = kinds.__getitem__) -> str:
            return f"{title:<52}" + "".join(f"{cell(guided):>20}" for guided in kinds)

        def macs(title: str, of_image: Callable[..., int | Fraction]) -> str:
            return row(title, lambda guided: giga_of(of_image(guided=guided), self.full))

        def bound(title: str, *, whole: bool) -> str:
            return row(title, lambda guided: f"{self.bound(whole=whole, guided=guided):.2f}")

        num_steps, num_full = self.plan.num_steps, self.plan.num_full
        yield row(f"MACs of one {'video' if len(self.sample) > len('BCHW') else 'image'}")
        yield macs(f"U-Net, uncached, {num_steps} steps", partial(self.unet_macs, cached=False))
        yield macs(f"U-Net, cached, {num_steps} steps", partial(self.unet_macs, cached=True))
        yield from (macs(part.name, part.of_image) for part in self.parts)
        if self.uncounted:
            yield from wrap(f"not counted: {', '.join(self.uncounted)}", _WIDTH)
        yield ""
        yield row("bound on the speedup, if time goes as MACs")
        yield bound("U-Net alone", whole=False)
        if self.parts:
            yield bound(", ".join(["U-Net", *(part.name for part in self.parts)]), whole=True)
        if self.plan.num_shallow:
            yield row("U-Net alone, if shallow steps took no time", lambda _: f"{num_steps / num_full:.2f}")
        if self.may_guide:
            encoders = ", and the text encoders run twice" * any(part.is_guided for part in self.parts)
            yield f"With guidance every step runs the U-Net on two samples{encoders}."
