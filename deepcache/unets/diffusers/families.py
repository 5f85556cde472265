"""Which U-Nets can be cut: diffusers' classes whose `forward` descends and ascends through blocks of known types."""

from __future__ import annotations

from typing import Any

from diffusers import (
    DiffusionPipeline,
    I2VGenXLUNet,
    UNet2DConditionModel,
    UNet2DModel,
    UNet3DConditionModel,
    UNetMotionModel,
    UNetSpatioTemporalConditionModel,
)
from diffusers.models.unets import unet_2d_blocks as flat
from diffusers.models.unets import unet_3d_blocks as deep
from diffusers.models.unets import unet_motion_model as motion
from torch import Tensor, nn

from deepcache.cache.timeline import num_descents
from deepcache.errors import DeepCacheError, UnsupportedUNetError

FAMILIES: tuple[type[nn.Module], ...] = (
    UNet2DModel,
    UNet2DConditionModel,
    UNetSpatioTemporalConditionModel,
    UNetMotionModel,
    UNet3DConditionModel,
    I2VGenXLUNet,
)
SKIP_UP_BLOCKS = (flat.SkipUpBlock2D, flat.AttnSkipUpBlock2D)
DOWN_BLOCKS: tuple[type[nn.Module], ...] = (
    flat.DownBlock2D,
    flat.AttnDownBlock2D,
    flat.CrossAttnDownBlock2D,
    flat.SimpleCrossAttnDownBlock2D,
    flat.ResnetDownsampleBlock2D,
    flat.SkipDownBlock2D,
    flat.AttnSkipDownBlock2D,
    deep.DownBlock3D,
    deep.CrossAttnDownBlock3D,
    deep.DownBlockSpatioTemporal,
    deep.CrossAttnDownBlockSpatioTemporal,
    motion.DownBlockMotion,
    motion.CrossAttnDownBlockMotion,
)
UP_BLOCKS: tuple[type[nn.Module], ...] = (
    flat.UpBlock2D,
    flat.AttnUpBlock2D,
    flat.CrossAttnUpBlock2D,
    flat.SimpleCrossAttnUpBlock2D,
    flat.ResnetUpsampleBlock2D,
    *SKIP_UP_BLOCKS,
    deep.UpBlock3D,
    deep.CrossAttnUpBlock3D,
    deep.UpBlockSpatioTemporal,
    deep.CrossAttnUpBlockSpatioTemporal,
    motion.UpBlockMotion,
    motion.CrossAttnUpBlockMotion,
)

READERS = (  # pipelines that read, on every step, what happens inside the deep blocks
    "LEditsPPPipelineStableDiffusion",
    "LEditsPPPipelineStableDiffusionXL",
    "StableDiffusionAttendAndExcitePipeline",
    "StableDiffusionPix2PixZeroPipeline",
    "StableDiffusionSAGPipeline",
)
COPIERS = ("ScoreSdeVePipeline",)  # that call the U-Net more than once a step, with copies of the timestep

SKIPPERS = ("RePaintPipeline",)  # pipelines that call the U-Net only at a timestep below the one before


def unet_of(owner: Any) -> tuple[Any, Any]:
    """What a pipeline calls (or the owner itself), and the U-Net in it: `torch.compile` wraps one in the other.

    Raises:
        UnsupportedUNetError: a pipeline of diffusers without `.unet`; the message names the U-Nets that it has.
    """
    outer = getattr(owner, "unet", owner)
    if isinstance(outer, DiffusionPipeline):
        raise UnsupportedUNetError(_without_unet(outer))
    return outer, _unwrapped(outer)


def _unwrapped(module: Any) -> Any:
    return getattr(module, "_orig_mod", module)


def _without_unet(pipe: DiffusionPipeline) -> str:
    names = [name for name, part in vars(pipe).items() if type(_unwrapped(part)) in FAMILIES]
    if not names:
        known = ", ".join(kind.__name__ for kind in FAMILIES)
        return f"expected a pipeline with a diffusers U-Net ({known}), got a {type(pipe).__name__}, which has none"
    calls = ", ".join(f"deepcache.cached(pipe.{name}, interval=N)" for name in names)
    return (
        f"expected a pipeline with its U-Net in pipe.unet, got a {type(pipe).__name__}; cache its U-Nets by their own "
        f"names, each in a block: {calls}"
    )


def require_pipeline(owner: Any) -> None:
    """Refuse a pipeline that needs the attention of the deep blocks on every step, or whose steps cannot be told.

    Raises:
        UnsupportedUNetError: one of the `READERS` or `COPIERS`, or a U-Net that group offloading moves as a whole.
    """
    _require_no_groups(unet_of(owner)[1])
    for kind in type(owner).__mro__:
        if kind.__name__ in READERS:
            raise UnsupportedUNetError(
                f"{kind.__name__} reads the attention of deep blocks on every step, which shallow steps do not run; "
                "run it outside deepcache.cached"
            )
        if kind.__name__ in COPIERS:
            raise UnsupportedUNetError(
                f"{kind.__name__} calls its U-Net more than once a step with copies of the timestep, so that a step "
                "cannot be told; run it outside deepcache.cached"
            )


def num_calls(owner: Any, timesteps: Tensor) -> tuple[int, ...]:
    """Return at how many timesteps a pipeline calls its U-Net, as far as that is known before it does.

    Args:
        owner: the pipeline.
        timesteps: the scheduler's, from the one of the generation's first call on.

    Returns:
        One number, or several where it is one of them: SDXL's base stops at `denoising_end`, which it remembers from
        its last call, so that another pipeline on the same scheduler may be the one that runs.
    """
    if skips_timesteps(owner):
        return (num_descents(timesteps.tolist()),)
    if getattr(owner, "denoising_end", None) is not None:
        return tuple(sorted({min(owner._num_timesteps, len(timesteps)), len(timesteps)}))
    return (len(timesteps),)


def skips_timesteps(owner: Any) -> bool:
    """Whether a pipeline calls its U-Net at some of the scheduler's timesteps only: RePaint adds noise at others."""
    return any(kind.__name__ in SKIPPERS for kind in type(owner).__mro__)


def _require_no_groups(unet: Any) -> None:
    """Refuse group offloading that has a hook on the U-Net itself: by blocks, or in the order that a stream expects."""
    hooks = getattr(unet, "_diffusers_hook", None)
    if hooks is not None and hooks.get_hook("group_offloading") is not None:
        raise UnsupportedUNetError(
            "expected a U-Net without group offloading by blocks or with streams, which moves the weights of a full "
            "step in its order, and a shallow step runs parts of blocks in another; offload it with "
            'offload_type="leaf_level" and use_stream=False, which is cached exactly'
        )


def require_sampler(owner: Any) -> None:
    """Refuse what cannot be sampled from, or only in a way that `require_pipeline` refuses.

    Raises:
        DeepCacheError: a bare U-Net, or anything else without a scheduler.
        UnsupportedUNetError: as `require_pipeline`.
    """
    if not hasattr(owner, "scheduler") or not callable(owner):
        raise DeepCacheError(f"expected a diffusers pipeline with a scheduler, got {type(owner).__name__}")
    require_pipeline(owner)


def require_family(unet: Any) -> None:
    """Refuse what cannot be cut.

    Raises:
        UnsupportedUNetError: not one of the `FAMILIES`, or a block of another type; a subclass may have another
            forward pass.
    """
    if type(unet) not in FAMILIES:
        names = ", ".join(kind.__name__ for kind in FAMILIES)
        raise UnsupportedUNetError(f"expected a diffusers U-Net ({names}), got a {type(unet).__name__}")
    for blocks, known in ((unet.down_blocks, DOWN_BLOCKS), (unet.up_blocks, UP_BLOCKS)):
        for block in blocks:
            if type(block) not in known:
                names = ", ".join(kind.__name__ for kind in known)
                raise UnsupportedUNetError(f"expected blocks of type {names}; this U-Net has a {type(block).__name__}")
    if len({type(block) in SKIP_UP_BLOCKS for block in unet.up_blocks}) > 1:
        raise UnsupportedUNetError("expected all up blocks of a U-Net with skip blocks to be such; some are not")
