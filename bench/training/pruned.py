"""mini-bk: mini-sd's U-Net with blocks removed as BK-SDM removes them, trained further.

References: BK-SDM: A Lightweight, Fast, and Cheap Version of Stable Diffusion (Kim et al., 2023),
https://arxiv.org/abs/2305.15798
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel

from bench.training.text_to_image import Captioned, TextDenoiser, build_unet
from bench.training.trainer import Recipe, seeded, train

RECIPE = Recipe(num_steps=900, lr=6e-4, warmup=50, ema=0.995)
_TWO_LEVELS = {
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}
SIZES: dict[str, dict[str, Any]] = {
    "base": {"layers_per_block": 1},  # one resnet and its attention fewer in every block
    "small": {"layers_per_block": 1, "mid_block_type": None},  # and no middle
    "tiny": {"layers_per_block": 1, "mid_block_type": None, **_TWO_LEVELS},  # and no innermost level
}


def prune(unet: UNet2DConditionModel, size: str) -> UNet2DConditionModel:
    """`unet` without the blocks that `size` goes without; the others keep their weights.

    Down blocks keep their first resnet; up blocks their first and last, which see the skips that are left.
    """
    smaller = build_unet(**SIZES[size])
    levels = len(smaller.down_blocks)
    gone = len(unet.up_blocks) - levels
    kept = unet.state_dict()
    start = smaller.state_dict()
    for name in start:
        source = _source(name, gone)
        if source in kept and kept[source].shape == start[name].shape:
            start[name] = kept[source]
    smaller.load_state_dict(start)
    return smaller


def _source(name: str, gone: int) -> str:
    """Where a weight of the smaller network stands in the larger: up blocks count from the innermost."""
    parts = name.split(".")
    if parts[0] == "up_blocks":
        parts[1] = str(int(parts[1]) + gone)
        if parts[2] in ("resnets", "attentions") and parts[3] == "1":
            parts[3] = "2"
    return ".".join(parts)


def train_pruned(size: str, full: TextDenoiser, data: Captioned, folder: Path) -> TextDenoiser:
    """The smaller U-Net, with mini-sd's text encoder as it is; resumes from `folder`."""
    text_encoder = copy.deepcopy(full.text_encoder).requires_grad_(requires_grad=False)
    with seeded():
        model = TextDenoiser(prune(full.unet, size).requires_grad_(requires_grad=True), text_encoder)
        return train(model, data.loss, RECIPE, folder / size)
