"""What a plan costs on a pipeline, told before anything runs; and a warning where caching cannot pay."""

from __future__ import annotations

import inspect
from typing import Any

from diffusers import UNet2DModel, UNetSpatioTemporalConditionModel
from torch import Tensor

from deepcache.costs.explanation import FEW_STEPS, Branch, Explanation, reason
from deepcache.costs.macs import EVERYTHING, Cost, cost, on_meta, one_sample
from deepcache.costs.parts import num_tokens, parts, pixels_a_side
from deepcache.errors import DeepCacheError, guessed, one_line, warn
from deepcache.plan import CachePlan, Interval, uniform
from deepcache.unets.diffusers.families import unet_of
from deepcache.unets.diffusers.forward import full_forward, named
from deepcache.unets.diffusers.inputs import Call, example
from deepcache.unets.diffusers.stages import nest
from deepcache.unets.diffusers.views import Cut


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
    """What a plan costs on a pipeline, and the bound on its speedup. Nothing is computed but shapes.

        print(explain(pipe, 3, num_steps=50))

    Args:
        owner: a diffusers pipeline, anything with a `.unet`, or a bare U-Net; with weights or on the meta device.
        plan: the full steps, branch and order; a number is an interval, at branch 0 and order 1.
        num_steps: U-Net calls of a generation; if None, the plan's, else the pipeline's default.
        name: what to call it; its class if None.
        context_tokens: length of a prompt; if None, as the tokenizer says, else 77, and 1 for a pipeline without text.
        height, width: of the image (of a bare U-Net's sample), both or none; if None, the configuration's.
        num_frames: of a video; if None, the configuration's, else 16.
        call: positional and keyword arguments of a U-Net call, instead of those that the configuration tells.

    Raises:
        DeepCacheError: an argument out of range, or no number of steps.
        UnsupportedUNetError: a U-Net that cannot be cached, or whose inputs its configuration does not tell.
    """
    outer, unet = unet_of(owner)
    chosen = _plan(owner, plan, num_steps)
    Cut.of(unet, chosen.branch)  # refuses what cannot be cached
    if call is None:
        size = _size(owner, height, width)
        tokens = context_tokens or (None if owner is outer else num_tokens(owner))
        with guessed("pass call=(args, kwargs), the arguments of a U-Net call, or generate once before you ask"):
            call = example(unet, context_tokens=tokens, size=size, num_frames=num_frames)
            costs, enters, feature = _count(unet, chosen.branch, call)
    else:
        call = one_sample(*call)
        with one_line(
            "this U-Net does not run without data, by which its MACs are counted",
            "explain it before it is quantised, or count the MACs of its configuration: deepcache explain",
        ):
            costs, enters, feature = _count(unet, chosen.branch, call)
    sample, context = _shapes(unet, call)
    found, missing = parts(owner, sample[-2:], _num_frames(unet, sample), context_tokens)
    stages = enumerate(zip(costs.down, costs.up, strict=True))
    return Explanation(
        name=name or type(owner).__name__,
        unet=type(unet).__name__,
        sample=sample,
        context_tokens=context,
        plan=chosen,
        branches=tuple(Branch(down.name, up.name, costs.shallow(b, EVERYTHING)) for b, (down, up) in stages),
        full=costs.full(EVERYTHING),
        enters=enters,
        feature=tuple(tuple(part.shape[1:] if len(part) == 1 else part.shape) for part in feature),
        bytes_each=unet.dtype.itemsize * sum(part.numel() for part in feature),
        parts=tuple(found),
        uncounted=tuple(missing),
        may_guide=not isinstance(unet, UNet2DModel) and not getattr(unet.config, "time_cond_proj_dim", None),
    )


def _plan(owner: Any, plan: CachePlan | Interval | int, num_steps: int | None) -> CachePlan:
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
    if height is None and width is None:
        return None
    if height is None or width is None:
        raise DeepCacheError(f"expected height and width together, got height {height!r} and width {width!r}")
    side = pixels_a_side(owner)
    return height // side, width // side


def _count(unet: Any, branch: int, call: Call) -> tuple[Cost, str, tuple[Tensor, ...]]:
    """The U-Net's cost, the name of the module that the feature enters, and a feature of one sample."""
    args, kwargs = call
    costs, twin = cost(unet, *args, **kwargs), on_meta(unet)
    _, feature = full_forward(twin, Cut.of(twin, branch), *args, **kwargs)
    first = nest(twin).up[branch].modules[0]
    return costs, next(name for name, module in twin.named_modules() if module is first), feature


def _shapes(unet: Any, call: Call) -> tuple[tuple[int, ...], int]:
    """Of the sample; and the length of the context."""
    given = named(unet, *call)
    context = given.get("encoder_hidden_states")
    return tuple(given["sample"].shape), context.shape[1] if isinstance(context, Tensor) else 0


def _num_frames(unet: Any, sample: tuple[int, ...]) -> int:
    if len(sample) == len("BCHW"):
        return 1
    return sample[1] if isinstance(unet, UNetSpatioTemporalConditionModel) else sample[2]


def warn_if_it_cannot_pay(plan: CachePlan | Interval, num_steps: int | None) -> bool:
    """Warn where a generation has so few steps that caching cannot pay, unless its plan caches nothing on purpose.

    Args:
        plan: the block's.
        num_steps: of the generation that begins; None if not known.

    Returns:
        Whether there was a warning, a `DeepCacheWarning`.
    """
    if num_steps is None or num_steps > FEW_STEPS or getattr(plan, "interval", None) == 1:
        return False
    num_full = sum(plan.is_full(step, num_steps) for step in range(num_steps))
    if isinstance(plan, CachePlan) and 1 < num_steps == num_full:
        return False
    warn(str(reason(num_full, num_steps)))
    return True
