"""U-Nets of the paper by name: their real configurations, without weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import Tensor, nn

from deepcache.macs import PAPER, PAPER_LDM, Convention


@dataclass(frozen=True)
class Architecture:
    """A U-Net's configuration and the size of its inputs.

    `context_tokens` is the length of the conditioning sequence, 0 for a U-Net that has none; `convention` is how the
    paper counted its MACs.
    """

    build: Callable[..., nn.Module]
    config: dict[str, Any]
    context_tokens: int = 0
    convention: Convention = PAPER

    def meta(self) -> nn.Module:
        """The U-Net on the meta device: all shapes, no memory."""
        with torch.device("meta"):
            return self.build(**self.config)

    def arguments(self) -> tuple[Tensor | int, ...]:
        """Inputs for one sample, on the meta device."""
        return meta_arguments(self.config, self.context_tokens)


def meta_arguments(config: dict[str, Any], context_tokens: int) -> tuple[Tensor | int, ...]:
    """`forward`'s positional arguments for a U-Net of this configuration: one sample, on the meta device."""
    side, channels = config["sample_size"], config.get("in_channels", 4)
    sides = (side, side) if isinstance(side, int) else tuple(side)
    sample = torch.empty(1, channels, *sides, device="meta")
    if not context_tokens:
        return sample, 0
    return sample, 0, torch.empty(1, context_tokens, config["cross_attention_dim"], device="meta")


def _ddpm(sample_size: int, widths: tuple[int, ...], attention_at: int) -> Architecture:
    """DDPM's U-Net (Ho et al., 2020): attention at the 16 x 16 level alone."""
    last = len(widths) - 1
    return Architecture(
        UNet2DModel,
        {
            "sample_size": sample_size,
            "in_channels": 3,
            "out_channels": 3,
            "block_out_channels": widths,
            "layers_per_block": 2,
            "down_block_types": tuple("AttnDownBlock2D" if i == attention_at else "DownBlock2D" for i in range(last + 1)),
            "up_block_types": tuple(
                "AttnUpBlock2D" if last - i == attention_at else "UpBlock2D" for i in range(last + 1)
            ),
            "attention_head_dim": None,
            "downsample_padding": 0,
            "flip_sin_to_cos": False,
            "freq_shift": 1,
            "norm_eps": 1e-6,
        },
    )


ARCHITECTURES: dict[str, Architecture] = {
    "ldm-4-g": Architecture(  # class-conditional ImageNet 256, CompVis' cin256-v2; 99.82 GMACs
        UNet2DConditionModel,
        {
            "sample_size": 64,
            "in_channels": 3,
            "out_channels": 3,
            "block_out_channels": (192, 384, 576, 960),
            "layers_per_block": 2,
            "down_block_types": ("DownBlock2D", *["CrossAttnDownBlock2D"] * 3),
            "up_block_types": (*["CrossAttnUpBlock2D"] * 3, "UpBlock2D"),
            "attention_head_dim": (6, 12, 18, 30),
            "cross_attention_dim": 512,
        },
        context_tokens=1,
        convention=PAPER_LDM,
    ),
    "ddpm-cifar10": _ddpm(32, (128, 256, 256, 256), attention_at=1),  # google/ddpm-cifar10-32; 6.06 GMACs
    "ddpm-lsun": _ddpm(256, (128, 128, 256, 256, 512, 512), attention_at=4),  # google/ddpm-ema-*-256; 248.7 GMACs
    "sd-1.5": Architecture(  # stable-diffusion-v1-5; 338.8 GMACs
        UNet2DConditionModel,
        {
            "sample_size": 64,
            "block_out_channels": (320, 640, 1280, 1280),
            "layers_per_block": 2,
            "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
            "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
            "attention_head_dim": 8,
            "cross_attention_dim": 768,
        },
        context_tokens=77,
    ),
}
