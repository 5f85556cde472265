"""What a pipeline tells of its U-Net: where the U-Net is, which pipelines cannot be cached, and how often they call."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import inf
from typing import Any, Protocol

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from deepcache.errors import DeepCacheError, UnsupportedUNetError
from deepcache.unets.family import UNet
from deepcache.unets.registry import classes

READERS = (  # pipelines that read, on every step, the attention inside the deep blocks
    "LEditsPPPipelineStableDiffusion",
    "LEditsPPPipelineStableDiffusionXL",
    "StableDiffusionAttendAndExcitePipeline",
    "StableDiffusionPix2PixZeroPipeline",
    "StableDiffusionSAGPipeline",
)
COPIERS = ("ScoreSdeVePipeline",)  # pipelines that call the U-Net more than once a step, with copies of the timestep
_REFUSED = {
    **dict.fromkeys(READERS, "reads the attention of deep blocks on every step, which shallow steps do not run"),
    **dict.fromkeys(
        COPIERS, "calls its U-Net more than once a step with copies of the timestep, so that a step cannot be told"
    ),
}
# Parts of the names of schedulers that add noise on every step, beside those whose `algorithm_type` begins with "sde"
NOISY = (
    "Ancestral",
    "CMStochastic",
    "CogVideoXDPM",
    "CosineDPM",
    "DDPM",
    "KarrasVe",
    "LCM",
    "RePaint",
    "SASolver",
    "SCM",
    "SDE",
    "ScoreSde",
    "TCD",
    "UnCLIP",
)
SKIPPERS = ("RePaintPipeline",)  # pipelines that call the U-Net only at a timestep below the one before


class Pipeline(Protocol):
    """A diffusers pipeline, or any object with a U-Net and a scheduler, whose `timesteps` (T) are those under way."""

    @property
    def unet(self) -> UNet: ...

    @property
    def scheduler(self) -> Any: ...


class Policy(Protocol):
    """A robot's policy, which has its scheduler under another name."""

    @property
    def unet(self) -> UNet: ...

    @property
    def noise_scheduler(self) -> Any: ...


Owner = Pipeline | Policy | UNet  # what `cached` takes


def unet_of(owner: Any) -> tuple[Any, Any]:
    """Return what a pipeline (or a bare U-Net) calls, and the U-Net in it, which `torch.compile` may have wrapped.

    An `UnsupportedUNetError` names the U-Nets of a diffusers pipeline that has no `.unet`.
    """
    outer = owner.transformer if is_transformer(owner) else getattr(owner, "unet", None)
    if outer is None:  # a policy, for example, that has its U-Net in `model`
        outer = getattr(owner, "model", owner) if scheduler_of(owner) is not None else owner
    if not isinstance(outer, DiffusionPipeline):
        return outer, _unwrapped(outer)
    known, name = classes(), type(outer).__name__
    others = [other for other, network in vars(outer).items() if type(_unwrapped(network)) in known.values()]
    if not others:
        raise UnsupportedUNetError(
            f"expected a pipeline with a diffusers U-Net ({', '.join(known)}), got a {name}, which has none"
        )
    calls = ", ".join(f"deepcache.cached(pipe.{other}, interval=N)" for other in others)
    raise UnsupportedUNetError(
        f"expected a pipeline with its U-Net in pipe.unet, got a {name}; cache its U-Nets by their own names, each in "
        f"a block: {calls}"
    )


def is_transformer(owner: Any) -> bool:
    """Return whether a pipeline has one transformer instead of a U-Net; branch -1 caches it.

    Raises:
        UnsupportedUNetError: the pipeline has two transformers, each for some of the steps.
    """
    if getattr(owner, "transformer", None) is None or getattr(owner, "unet", None) is not None:
        return False
    if scheduler_of(owner) is None:  # a network with a part of that name
        return False
    if getattr(owner, "transformer_2", None) is not None:
        raise UnsupportedUNetError(
            f"expected a pipeline with one network, got a {type(owner).__name__} with transformer and transformer_2, "
            "which share the steps; cache each by its own name, with num_steps the number of its steps"
        )
    return True


def scheduler_of(owner: Any) -> Any:
    """Return the scheduler of a pipeline, or of a robot's policy, which calls it `noise_scheduler`; None without."""
    own = getattr(owner, "scheduler", None)  # whose length may be unknown, and so its truth
    return getattr(owner, "noise_scheduler", None) if own is None else own


def guidance_of(owner: Any) -> float | None:
    """Return the strength of guidance in a pipeline's call under way, 1 without guidance; None if it does not tell."""
    try:
        return float(torch.as_tensor(owner.guidance_scale).max()) if owner.do_classifier_free_guidance else 1.0
    except (AttributeError, TypeError, ValueError, RuntimeError):  # a pipeline that was never called has no value
        return None


def adds_noise(owner: Any) -> bool:
    """Return whether the solver of a pipeline or policy adds noise on every step, as far as its class tells."""
    scheduler = scheduler_of(owner)
    config = getattr(scheduler, "config", None)
    if str(getattr(config, "algorithm_type", "")).startswith("sde") or getattr(config, "stochastic_sampling", False):
        return True
    return any(name in type(scheduler).__name__ for name in NOISY)


def _unwrapped(module: Any) -> Any:
    return getattr(module, "_orig_mod", module)


def require_pipeline(owner: Any) -> None:
    """Raise an `UnsupportedUNetError` for `READERS`, `COPIERS` and group offloading that moves the U-Net as a whole."""
    hooks = getattr(unet_of(owner)[1], "_diffusers_hook", None)
    if hooks is not None and hooks.get_hook("group_offloading") is not None:  # by blocks, or with a stream
        raise UnsupportedUNetError(
            "expected a U-Net without group offloading by blocks or with streams, which moves the weights of a full "
            "step in its order, and a shallow step runs parts of blocks in another; offload it with "
            'offload_type="leaf_level" and use_stream=False, which is cached exactly'
        )
    for kind in type(owner).__mro__:
        if kind.__name__ in _REFUSED:
            raise UnsupportedUNetError(f"{kind.__name__} {_REFUSED[kind.__name__]}; run it outside deepcache.cached")


def require_sampler(owner: Any) -> None:
    """Raise a `DeepCacheError` for anything without a scheduler, and refuse what `require_pipeline` refuses."""
    if not hasattr(owner, "scheduler") or not callable(owner):
        raise DeepCacheError(f"expected a diffusers pipeline with a scheduler, got {type(owner).__name__}")
    require_pipeline(owner)


def num_calls(owner: Any, timesteps: Tensor) -> tuple[int, ...]:
    """Return at how many of the scheduler's remaining timesteps, (T,), a pipeline calls its U-Net.

    SDXL's base stops at `denoising_end` and gives two numbers: it keeps that setting from its last call, and another
    pipeline on the same scheduler may be the one that runs.
    """
    if skips_timesteps(owner):
        return (num_descents(timesteps.tolist()),)
    if getattr(owner, "denoising_end", None) is not None:
        return tuple(sorted({min(owner._num_timesteps, len(timesteps)), len(timesteps)}))
    return (len(timesteps),)


def skips_timesteps(owner: Any) -> bool:
    """Say whether a pipeline calls its U-Net at some timesteps only: RePaint adds noise at the other timesteps."""
    return any(kind.__name__ in SKIPPERS for kind in type(owner).__mro__)


def num_descents(timesteps: Sequence[float]) -> int:
    """Return how many timesteps are lower than the one before; the first one counts. RePaint calls its U-Net there."""
    return sum(now < before for before, now in pairwise((inf, *timesteps)))
