"""mini-bk: mini-sd's U-Net with blocks removed as BK-SDM removes them, trained further.

References: BK-SDM: A Lightweight, Fast, and Cheap Version of Stable Diffusion (Kim et al., 2023),
https://arxiv.org/abs/2305.15798
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from bench.training import fashion, prompted
from bench.training.cards import DATA, Card, num_parameters, trained
from bench.training.mini_sd import BATCH, Captioned, TextDenoiser, build_unet
from bench.training.trainer import Recipe, seeded, train
from deepcache.errors import DeepCacheError
from deepcache.models import load
from deepcache.models.architectures import architecture
from deepcache.models.embedded import WEIGHTS

RECIPE = Recipe(num_steps=900, lr=6e-4, warmup=50, ema=0.995)
_TWO_LEVELS = {
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}
REMOVED = {
    "base": "a resnet and its attention fewer in every block",
    "small": "a resnet and its attention fewer in every block, and no middle",
    "tiny": "a resnet and its attention fewer in every block, no middle, and no innermost level",
}
SIZES: dict[str, dict[str, Any]] = {
    "base": {"layers_per_block": 1},  # one resnet and its attention fewer in every block
    "small": {"layers_per_block": 1, "mid_block_type": None},  # and no middle
    "tiny": {"layers_per_block": 1, "mid_block_type": None, **_TWO_LEVELS},  # and no innermost level
}


def prune(unet: UNet2DConditionModel, size: str) -> UNet2DConditionModel:
    """Return a U-Net without the blocks that a size goes without; the other blocks keep their weights.

    Down blocks keep their first resnet; up blocks keep their first and their last, which take the skips that are left.
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
    """Return the larger network's name of a weight of the smaller one: up blocks count from the innermost."""
    parts = name.split(".")
    if parts[0] == "up_blocks":
        parts[1] = str(int(parts[1]) + gone)
        if parts[2] in ("resnets", "attentions") and parts[3] == "1":
            parts[3] = "2"
    return ".".join(parts)


def train_pruned(size: str, full: TextDenoiser, data: Captioned, folder: Path) -> TextDenoiser:
    """Train the smaller U-Net, with mini-sd's text encoder as it is; resumes from `folder`."""
    text_encoder = copy.deepcopy(full.text_encoder).requires_grad_(requires_grad=False)
    with seeded():
        model = TextDenoiser(prune(full.unet, size).requires_grad_(requires_grad=True), text_encoder)
        return train(model, data.loss, RECIPE, folder / size)


def export(unet: UNet2DConditionModel, out: Path) -> None:
    """Write a pruned U-Net alone: the other components are mini-sd's."""
    unet.to(torch.float16).save_pretrained(out / "unet", variant="fp16", safe_serialization=True)


def card(size: str, _held_out: fashion.Painted, runs: Path) -> Card:
    """Return the card of a pruned mini-sd as it is shipped, at mini-sd's best guidance."""
    name = f"mini-bk-{size}"
    history = trained(
        "U-Net, trained further with mini-sd's text encoder as it is",
        runs / "mini-bk" / size,
        BATCH,
    )
    guidance = _guidance()
    full, pipe = load("mini-sd"), load(name)
    macs = architecture(name).cost().full()
    share = macs / architecture("mini-sd").cost().full()
    samples = prompted.prompted(pipe, guidance)
    about = f"""mini-sd's U-Net with {REMOVED[size]}: {num_parameters(pipe.unet)} parameters of
{num_parameters(full.unet)}, {share:.0%} of the MACs. The blocks are those that BK-SDM removes, and it stands for BK-SDM
{size.capitalize()}. Autoencoder, text encoder and tokenizer are mini-sd's, and not stored twice."""
    return Card(
        name=name,
        about=about,
        facts=(DATA, "made by `python -m bench.training mini-sd mini-bk`", history),
        measured=f"Of {prompted.NUM_SAMPLES} uncached samples (PLMS {prompted.NUM_STEPS} steps, guidance "
        f"{guidance:g}, mini-sd's best), their contents by mini-features, the clip score by mini-clip; MACs of one "
        "U-Net call, attention not counted:",
        scores={
            "guidance": guidance,
            **samples.scores(),
            "parameters": sum(p.numel() for p in pipe.unet.parameters()),
            "macs": macs,
            "macs_share_of_mini_sd": share,
        },
        picture=samples.picture(f"samples of {name}, each above its prompt", guidance),
    )


def _guidance() -> float:
    """Return mini-sd's best guidance, out of the scores beside its card."""
    path = WEIGHTS / "mini-sd" / "scores.json"
    if not path.is_file():
        raise DeepCacheError(f"expected mini-sd's best guidance in {path}; write the card of mini-sd first")
    return float(json.loads(path.read_text())["guidance"])
