"""A U-Net as a nest of stages, each pushing or popping exactly one skip.

With down stages d_0 (conv_in), d_1, ..., d_n and up stages u_n, ..., u_0, where u_i joins skip i:

    h_0 = d_0(x),  h_i = d_i(h_{i-1});   g_{n+1} = mid(h_n),  g_i = u_i([g_{i+1}, h_i])

A down stage is a resnet with its attention, or a downsampler. An up stage is a resnet with its attention
and, where it is the last of its block, the upsampler. The stages call the U-Net's own modules; they hold
no weights and no state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.unets import unet_2d_blocks as blocks
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from deepcache.errors import UnsupportedUNetError

DOWN_BLOCKS = (
    blocks.DownBlock2D,
    blocks.AttnDownBlock2D,
    blocks.CrossAttnDownBlock2D,
    blocks.ResnetDownsampleBlock2D,
)
UP_BLOCKS = (blocks.UpBlock2D, blocks.AttnUpBlock2D, blocks.CrossAttnUpBlock2D, blocks.ResnetUpsampleBlock2D)
MID_BLOCKS = (blocks.UNetMidBlock2D, blocks.UNetMidBlock2DCrossAttn)


class Conditions(NamedTuple):
    """What every stage gets beside the hidden state.

    `temb` (B, D) the embedded timestep; `context` the keyword arguments of a cross-attention transformer.
    """

    temb: Tensor
    context: dict[str, Any]


@dataclass(frozen=True)
class DownStage:
    """d_i: `conv_in`, a resnet with its attention, or a downsampler. Pushes skip i."""

    name: str
    module: nn.Module
    attention: nn.Module | None = None
    takes_temb: bool = True

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        return tuple(m for m in (self.module, self.attention) if m is not None)

    def __call__(self, hidden: Tensor, conditions: Conditions) -> Tensor:
        hidden = self.module(hidden, conditions.temb) if self.takes_temb else self.module(hidden)
        return _attend(self.attention, hidden, conditions)


@dataclass(frozen=True)
class UpStage:
    """u_i: a resnet with its attention, and the upsampler of its block after the block's last. Pops skip i."""

    name: str
    resnet: nn.Module
    attention: nn.Module | None = None
    upsampler: nn.Module | None = None

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        return tuple(m for m in (self.resnet, self.attention, self.upsampler) if m is not None)

    def __call__(self, hidden: Tensor, skip: Tensor, conditions: Conditions, size: torch.Size | None) -> Tensor:
        hidden = self.resnet(torch.cat([hidden, skip], dim=1), conditions.temb)
        hidden = _attend(self.attention, hidden, conditions)
        if self.upsampler is None:
            return hidden
        if isinstance(self.upsampler, Upsample2D):
            return self.upsampler(hidden, size)  # type: ignore[no-any-return]
        return self.upsampler(hidden, conditions.temb)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class MidStage:
    """The innermost block, or nothing where the U-Net has none. Pushes and pops nothing."""

    module: nn.Module | None
    name: str = "mid"

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        return () if self.module is None else (self.module,)

    def __call__(self, hidden: Tensor, conditions: Conditions) -> Tensor:
        if self.module is None:
            return hidden
        if getattr(self.module, "has_cross_attention", False):
            return self.module(hidden, conditions.temb, **conditions.context)  # type: ignore[no-any-return]
        return self.module(hidden, conditions.temb)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Nest:
    """All stages of one U-Net: `down[i]` pushes skip i, `up[i]` pops it."""

    down: tuple[DownStage, ...]
    mid: MidStage
    up: tuple[UpStage, ...]

    @property
    def num_branches(self) -> int:
        """One a skip: branches are 0 .. `num_branches` - 1."""
        return len(self.down)


def nest(unet: Any) -> Nest:
    """The stages of a U-Net with `conv_in`, `down_blocks`, `mid_block` and `up_blocks`.

    Raises:
        UnsupportedUNetError: a block is of a type whose forward pass is not known here.
    """
    for kind, known in (("down_blocks", DOWN_BLOCKS), ("mid_block", MID_BLOCKS), ("up_blocks", UP_BLOCKS)):
        _require_known(getattr(unet, kind), known)
    down = (DownStage("conv_in", unet.conv_in, takes_temb=False), *_down_stages(unet.down_blocks))
    up = tuple(_up_stages(unet.up_blocks))[::-1]
    if len(down) != len(up):
        raise UnsupportedUNetError(
            f"expected as many skips pushed as popped; this {type(unet).__name__} pushes {len(down)} and pops {len(up)}"
        )
    return Nest(down, MidStage(unet.mid_block), up)


def _down_stages(down_blocks: Sequence[Any]) -> Iterator[DownStage]:
    for b, block in enumerate(down_blocks):
        for r, (resnet, attention) in enumerate(_pairs(block)):
            yield DownStage(f"down_blocks.{b}.{r}", resnet, attention)
        for downsampler in block.downsamplers or ():
            takes_temb = not isinstance(downsampler, Downsample2D)
            yield DownStage(f"down_blocks.{b}.downsampler", downsampler, takes_temb=takes_temb)


def _up_stages(up_blocks: Sequence[Any]) -> Iterator[UpStage]:
    for b, block in enumerate(up_blocks):
        upsampler = block.upsamplers[0] if block.upsamplers else None
        pairs = _pairs(block)
        for r, (resnet, attention) in enumerate(pairs):
            last = r == len(pairs) - 1
            yield UpStage(f"up_blocks.{b}.{r}", resnet, attention, upsampler if last else None)


def _pairs(block: Any) -> list[tuple[nn.Module, nn.Module | None]]:
    attentions = getattr(block, "attentions", None) or [None] * len(block.resnets)
    return list(zip(block.resnets, attentions, strict=True))


def _attend(attention: nn.Module | None, hidden: Tensor, conditions: Conditions) -> Tensor:
    if attention is None:
        return hidden
    if isinstance(attention, Attention):
        return attention(hidden)  # type: ignore[no-any-return]
    return attention(hidden, **conditions.context, return_dict=False)[0]  # type: ignore[no-any-return]


def _require_known(found: nn.Module | Sequence[nn.Module] | None, known: tuple[type[nn.Module], ...]) -> None:
    for block in found if isinstance(found, nn.ModuleList) else [found]:
        if block is not None and type(block) not in known:
            names = ", ".join(kind.__name__ for kind in known)
            raise UnsupportedUNetError(f"expected blocks of type {names}; this U-Net has a {type(block).__name__}")
