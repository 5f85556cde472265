"""A U-Net of diffusers as a nest of stages, each of which pushes or pops exactly one skip.

With down stages d_0 (conv_in), d_1, ..., d_n and up stages u_n, ..., u_0, where u_i joins skip i:

    h_0 = d_0(x),  h_i = d_i(h_{i-1});   g_{n+1} = mid(h_n),  g_i = u_i([g_{i+1}, h_i])

A down stage is a resnet with its attention, or a downsampler. An up stage is a resnet with its attention, and the
upsampler too where the stage is the last of its block. A stage says where it is; the U-Net's own `forward` runs it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
from diffusers.models.unets import unet_2d_blocks as flat
from diffusers.models.unets import unet_3d_blocks as deep
from diffusers.models.unets import unet_motion_model as motion
from torch import nn

from deepcache.errors import UnsupportedUNetError
from deepcache.plan import IDLE
from deepcache.unets.calls import Call
from deepcache.unets.family import Nest, Stage

CLASSES: tuple[type[nn.Module], ...] = (
    diffusers.UNet2DModel, diffusers.UNet2DConditionModel, diffusers.UNetSpatioTemporalConditionModel,
    diffusers.UNetMotionModel, diffusers.UNet3DConditionModel, diffusers.I2VGenXLUNet,
)  # fmt: skip
SKIP_UP_BLOCKS = (flat.SkipUpBlock2D, flat.AttnSkipUpBlock2D)
DOWN_BLOCKS: tuple[type[nn.Module], ...] = (
    flat.DownBlock2D, flat.AttnDownBlock2D, flat.CrossAttnDownBlock2D, flat.SimpleCrossAttnDownBlock2D,
    flat.ResnetDownsampleBlock2D, flat.SkipDownBlock2D, flat.AttnSkipDownBlock2D,
    deep.DownBlock3D, deep.CrossAttnDownBlock3D, deep.DownBlockSpatioTemporal, deep.CrossAttnDownBlockSpatioTemporal,
    motion.DownBlockMotion, motion.CrossAttnDownBlockMotion,
)  # fmt: skip
UP_BLOCKS: tuple[type[nn.Module], ...] = (
    flat.UpBlock2D, flat.AttnUpBlock2D, flat.CrossAttnUpBlock2D, flat.SimpleCrossAttnUpBlock2D,
    flat.ResnetUpsampleBlock2D, *SKIP_UP_BLOCKS,
    deep.UpBlock3D, deep.CrossAttnUpBlock3D, deep.UpBlockSpatioTemporal, deep.CrossAttnUpBlockSpatioTemporal,
    motion.UpBlockMotion, motion.CrossAttnUpBlockMotion,
)  # fmt: skip
PER_RESNET = ("resnets", "attentions", "motion_modules", "temp_convs", "temp_attentions")


@dataclass(frozen=True)
class BlockStage(Stage):
    """A stage and its place in the blocks of a U-Net."""

    block: int = -1  # the number of the stage's down or up block; -1 for `conv_in`
    resnet: int = 0  # the number of its resnet within the block; for a downsampler, how many resnets come before it
    is_last: bool = True  # whether it is the last stage of its block


def nest(unet: Any, call: Call | None = None) -> Nest[BlockStage]:  # noqa: ARG001 (a call tells nothing more)
    """Return the stages of a U-Net; unknown blocks and skips that nobody pops raise an `UnsupportedUNetError`."""
    for blocks, known in ((unet.down_blocks, DOWN_BLOCKS), (unet.up_blocks, UP_BLOCKS)):
        for block in blocks:
            if type(block) not in known:  # a subclass of a known block may have another `forward`
                names = ", ".join(kind.__name__ for kind in known)
                raise UnsupportedUNetError(
                    f"expected blocks of type {names}; this U-Net has a {type(block).__name__}, so that it cannot be "
                    f"cut; branch={IDLE} caches any network"
                )
    if len({type(block) in SKIP_UP_BLOCKS for block in unet.up_blocks}) > 1:
        raise UnsupportedUNetError("expected all up blocks of a U-Net with skip blocks to be such; some are not")
    down = (BlockStage("conv_in", (unet.conv_in,)), *_stages("down_blocks", unet.down_blocks))
    up = tuple(_stages("up_blocks", unet.up_blocks))[::-1]
    if len(down) != len(up):
        raise UnsupportedUNetError(
            f"expected as many skips pushed as popped; this {type(unet).__name__} pushes {len(down)} and pops {len(up)}"
        )
    return Nest(down, Stage("mid", () if unet.mid_block is None else (unet.mid_block,)), up)


def _stages(kind: str, blocks: Sequence[Any]) -> Iterator[BlockStage]:
    for b, block in enumerate(blocks):
        num_resnets = len(block.resnets)
        lists = per_resnet(block)
        others = [module for name, module in block.named_children() if name not in lists]
        rest = [m for other in others for m in (other if isinstance(other, nn.ModuleList) else [other])]
        pushes = bool(getattr(block, "downsamplers", None))  # a downsampler pushes a skip, an upsampler pops none
        for r in range(num_resnets):
            is_last = r == num_resnets - 1 and not pushes
            own = [modules[r] for modules in lists.values()]
            yield BlockStage(f"{kind}.{b}.{r}", (*own, *(rest if is_last else ())), b, r, is_last=is_last)
        if pushes:
            yield BlockStage(f"{kind}.{b}.downsampler", tuple(rest), b, num_resnets)


def per_resnet(block: Any) -> dict[str, nn.ModuleList]:
    """Return the lists of a block that have one module for each resnet."""
    found = {name: block._modules[name] for name in PER_RESNET if block._modules.get(name) is not None}
    return {name: modules for name, modules in found.items() if len(modules) == len(block.resnets)}
