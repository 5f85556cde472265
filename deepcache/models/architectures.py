"""U-Nets by name, or by their configuration file: their shapes, without weights."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel, UNet2DModel

from deepcache.costs.macs import PAPER, PAPER_LDM, Convention, Cost, cost
from deepcache.errors import DeepCacheError, UnsupportedUNetError, guessed, shown
from deepcache.models.configurations import bounded, read
from deepcache.models.embedded import CONTEXT_TOKENS, EMBEDDED, WEIGHTS
from deepcache.models.ldm_config import CIN256_V2, unet_config
from deepcache.plan import require_whole
from deepcache.unets.calls import CLIP_TOKENS
from deepcache.unets.registry import classes, family_of


@dataclass(frozen=True)
class Architecture:
    """A U-Net's configuration and the size of its inputs.

    `build` is the U-Net's class; `context_tokens` is the length of the conditioning sequence, 0 for a U-Net that has
    none; `convention` is how the paper counted its MACs.
    """

    build: Any
    config: dict[str, Any]
    context_tokens: int = 0
    convention: Convention = PAPER

    def meta(self) -> Any:
        """The U-Net on the meta device: all shapes, no memory."""
        with torch.device("meta"), bounded():
            return self.build.from_config(self.config)

    @property
    def num_branches(self) -> int:
        """One a skip."""
        unet = self.meta()
        return family_of(unet).nest(unet).num_branches

    def cost(self) -> Cost:
        """MACs of a step on one sample.

        Raises:
            UnsupportedUNetError: a configuration that is wrong, or that needs inputs which cannot be guessed.
        """
        with guessed("call deepcache.costs.macs.cost(unet, ...) with the U-Net's own inputs"):
            unet = self.meta()
            args, kwargs = family_of(unet).example(unet, context_tokens=self.context_tokens or None)
            return cost(unet, *args, **kwargs)


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
            "down_block_types": tuple(
                "AttnDownBlock2D" if i == attention_at else "DownBlock2D" for i in range(last + 1)
            ),
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


def _stable_diffusion(**config: Any) -> Architecture:
    """Stable Diffusion's U-Net: v1.5's configuration and what differs from it."""
    return Architecture(
        UNet2DConditionModel,
        {
            "sample_size": 64,
            "block_out_channels": (320, 640, 1280, 1280),
            "layers_per_block": 2,
            "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
            "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
            "attention_head_dim": 8,
            "cross_attention_dim": 768,
            **config,
        },
        context_tokens=CLIP_TOKENS,
    )


ARCHITECTURES: dict[str, Architecture] = {
    # class-conditional ImageNet 256, CompVis' cin256-v2; 99.82 GMACs
    "ldm-4-g": Architecture(UNet2DConditionModel, unet_config(CIN256_V2), context_tokens=1, convention=PAPER_LDM),
    "ddpm-cifar10": _ddpm(32, (128, 256, 256, 256), attention_at=1),  # google/ddpm-cifar10-32; 6.06 GMACs
    "ddpm-lsun": _ddpm(256, (128, 128, 256, 256, 512, 512), attention_at=4),  # google/ddpm-ema-*-256; 248.7 GMACs
    "sd-1.5": _stable_diffusion(),  # 338.8 GMACs
    "sd-2.1": _stable_diffusion(  # of 768 x 768 images
        sample_size=96,
        attention_head_dim=(5, 10, 20, 20),
        cross_attention_dim=1024,
        use_linear_projection=True,
        upcast_attention=True,
    ),
    "sdxl": _stable_diffusion(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * 2),
        up_block_types=(*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    ),
    # nota-ai's: a resnet fewer a block; 223.8 GMACs
    "bk-sdm-base": _stable_diffusion(layers_per_block=1),
    "bk-sdm-small": _stable_diffusion(layers_per_block=1, mid_block_type=None),  # no middle; 217.8 GMACs
    "bk-sdm-tiny": _stable_diffusion(  # no innermost level; 205.1 GMACs
        layers_per_block=1,
        mid_block_type=None,
        block_out_channels=(320, 640, 1280),
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
    ),
}
SHARED = {"ddpm-bedroom": "ddpm-lsun", "ddpm-church": "ddpm-lsun"}  # other weights, the same networks


def architecture(name: str, *, context_tokens: int | None = None) -> Architecture:
    """A known name, an embedded model, a diffusers folder, or a U-Net's `config.json`.

    Args:
        name: which.
        context_tokens: length of the conditioning sequence; if None, the known model's own, else 77.

    Raises:
        DeepCacheError: none of these, or a configuration that cannot be read.
        UnsupportedUNetError: a configuration of another class.
    """
    if context_tokens is not None:
        require_whole("context_tokens", context_tokens, at_least=1)
    found = _find(name)
    if context_tokens is None:
        return found
    if not found.context_tokens:
        raise DeepCacheError(f"{name} takes no context; leave out --context-tokens")
    return replace(found, context_tokens=context_tokens)


def _find(name: str) -> Architecture:
    if SHARED.get(name, name) in ARCHITECTURES:
        return ARCHITECTURES[SHARED.get(name, name)]
    if name in EMBEDDED:
        return from_config(WEIGHTS / name / "unet" / "config.json", context_tokens=CONTEXT_TOKENS[name])
    folder = Path(name)
    index = read(folder / "model_index.json") if os.path.isfile(folder / "model_index.json") else {}
    has_text = not index or not index.keys().isdisjoint(("text_encoder", "tokenizer"))
    for path in (folder, folder / "unet" / "config.json", folder / "config.json"):
        if os.path.isfile(path):  # unlike Path.is_file, also for a name that is too long
            return from_config(path, context_tokens=CLIP_TOKENS if has_text else 1)
    raise DeepCacheError(
        f"expected a model out of {', '.join([*ARCHITECTURES, *SHARED, *EMBEDDED])}, a diffusers folder or a "
        f"config.json; got {name!r}, which is neither"
    )


def from_config(path: Path, *, context_tokens: int) -> Architecture:
    """From a U-Net's `config.json`; `context_tokens` counts where its class takes a text."""
    known, config = classes(), read(path)
    kind = config.get("_class_name")
    if not isinstance(kind, str) or kind not in known:
        raise UnsupportedUNetError(f"expected a configuration of {', '.join(known)} in {path}, got {shown(kind)}")
    settings = {key: value for key, value in config.items() if not key.startswith("_")}
    own = {"UNet2DModel": 0, "UNetSpatioTemporalConditionModel": 1}  # none, and an image
    return Architecture(known[kind], settings, own.get(kind, context_tokens))
