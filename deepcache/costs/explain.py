"""Works out what a plan costs on a pipeline, before anything runs."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor

from deepcache.costs.macs import Cost, counted
from deepcache.costs.page import Explanation
from deepcache.costs.parts import num_tokens, parts, pixels_a_side
from deepcache.errors import DeepCacheError, guessed, one_line
from deepcache.plan import CachePlan, Interval, uniform
from deepcache.unets.calls import Call, named, one_sample, parameters
from deepcache.unets.pipelines import unet_of
from deepcache.unets.registry import cut, family_of
from deepcache.unets.structure import on_meta


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
        plan: the full steps, branch and order; a number is an interval, at branch 0 and order 1.
        num_steps: U-Net calls of a generation; None means those of the plan, or else the pipeline's default.
        name: the name on the page; None means the class of the pipeline.
        context_tokens: the length of a prompt; None means as the tokenizer says, or else 77, and 1 for a pipeline
            without text.
        height, width: of the image in pixels, or of a bare U-Net's sample; both or none. None means those of the
            configuration.
        num_frames: the length of a video; None means that of the configuration, or else 16.
        call: positional and keyword arguments of a U-Net call, instead of those that the configuration tells.

    Raises:
        DeepCacheError: an argument is out of range, or the number of steps is not known.
        UnsupportedUNetError: the U-Net cannot be cached, or its configuration does not tell its inputs.
    """
    outer, unet = unet_of(owner)
    chosen = _plan(owner, plan, num_steps)
    family = family_of(unet)
    family.nest(unet)  # refuses blocks that cannot be cut
    if call is None:
        size = _size(owner, height, width)
        tokens = context_tokens or (None if owner is outer else num_tokens(owner))
        with guessed("pass call=(args, kwargs), the arguments of a U-Net call, or generate once before you ask"):
            call = family.example(unet, context_tokens=tokens, size=size, num_frames=num_frames)
            cost, enters, feature = _count(unet, chosen.branch, call)
    else:
        call = one_sample(*call)
        with one_line(
            "this U-Net does not run without data, by which its MACs are counted",
            "explain it before it is quantised, or count the MACs of its configuration: deepcache explain",
        ):
            cost, enters, feature = _count(unet, chosen.branch, call)
    given = named(unet, *call)
    sample, context = tuple(given["sample"].shape), given.get("encoder_hidden_states")
    found, missing = parts(owner, sample[-2:], family.num_frames(unet, sample), context_tokens)
    takes_context = "encoder_hidden_states" in parameters(unet.__class__)
    return Explanation(
        name=name or type(owner).__name__,
        unet=type(unet).__name__,
        sample=sample,
        context_tokens=context.shape[1] if isinstance(context, Tensor) else 0,
        plan=chosen,
        cost=cost,
        enters=enters,
        feature=tuple(tuple(tensor.shape[1:] if len(tensor) == 1 else tensor.shape) for tensor in feature),
        bytes_each=unet.dtype.itemsize * sum(tensor.numel() for tensor in feature),
        parts=tuple(found),
        uncounted=tuple(missing),
        may_guide=takes_context and not getattr(unet.config, "time_cond_proj_dim", None),
    )


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
    return uniform(num_steps, every.interval, every.branch, every.order, last_step_full=every.last_step_full)


def _size(owner: Any, height: int | None, width: int | None) -> tuple[int, int] | None:
    """Return height and width of the U-Net's sample for an image of this size in pixels."""
    if height is None and width is None:
        return None
    if height is None or width is None:
        raise DeepCacheError(f"expected height and width together, got height {height!r} and width {width!r}")
    side = pixels_a_side(owner)
    return height // side, width // side


def _count(unet: Any, branch: int, call: Call) -> tuple[Cost, str, tuple[Tensor, ...]]:
    """Return the U-Net's cost, the name of the module that the feature enters, and a feature of one sample."""
    args, kwargs = call
    twin = on_meta(unet)
    _, feature = cut(twin, branch).full(*args, **kwargs)
    cost = counted(twin, args, kwargs)
    first = family_of(twin).nest(twin).up[branch].modules[0]
    return cost, next(name for name, module in twin.named_modules() if module is first), feature
