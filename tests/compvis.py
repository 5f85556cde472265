"""CompVis' configurations, checkpoints and sampler, written for the tests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from tests.compvis_networks import Config, Make, classes, decode, encode, unet

UNET = {
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "attention_resolutions": [4, 2],
    "num_res_blocks": 2,
    "channel_mult": [1, 2, 3],
    "num_heads": 1,
    "use_spatial_transformer": True,
    "transformer_depth": 1,
    "context_dim": 24,
}
AUTOENCODER = {  # attention at the innermost resolution, and codes of another width than the latents
    "double_z": False,
    "z_channels": 3,
    "resolution": 16,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [8],
    "dropout": 0.0,
}


def config(unet: Config | None = None, autoencoder: Config | None = None, **params: Any) -> Config:
    """The contents of a YAML file: cin256-v2's layout in tiny, with changes."""
    home = "ldm.models"
    return {
        "model": {
            "target": f"{home}.diffusion.ddpm.LatentDiffusion",
            "params": {
                "linear_start": 0.0015,
                "linear_end": 0.0195,
                "timesteps": 1000,
                "image_size": 8,
                "conditioning_key": "crossattn",
                "use_ema": False,
                "unet_config": {
                    "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
                    "params": {**UNET, **(unet or {})},
                },
                "first_stage_config": {
                    "target": f"{home}.autoencoder.VQModelInterface",
                    "params": {"embed_dim": 4, "n_embed": 32, "ddconfig": {**AUTOENCODER, **(autoencoder or {})}},
                },
                "cond_stage_config": {
                    "target": "ldm.modules.encoders.modules.ClassEmbedder",
                    "params": {"n_classes": 11, "embed_dim": 24, "key": "class_label"},
                },
                **params,
            },
        }
    }


def noise(seed: int = 0) -> Make:
    """A maker of random weights: scaled by their fan-in, norms about 1, and attention far from uniform."""
    generator = torch.Generator().manual_seed(seed)

    def make(name: str, shape: Sequence[int]) -> Tensor:
        drawn = torch.randn(shape, generator=generator)
        if len(shape) == 1:
            return 0.2 * drawn + float(name.endswith("weight"))
        gain = 2 if re.search(r"\.(to_q|to_k|q|k)\.weight", name) else 1
        return gain * drawn / drawn[0].numel() ** 0.5

    return make


def layout(found: Config, make: Make) -> dict[str, Tensor]:
    """A `state_dict`, which is made by evaluating all networks once."""
    state: dict[str, Tensor] = {}
    params = found["model"]["params"]
    size, dd = params["image_size"], params["first_stage_config"]["params"]["ddconfig"]
    context = classes(state, found, torch.zeros(1, dtype=torch.long), make)
    latents = torch.zeros(1, params["unet_config"]["params"]["in_channels"], size, size)
    unet(state, found, latents, torch.zeros(1), context, make)
    encode(state, found, torch.zeros(1, dd["in_channels"], dd["resolution"], dd["resolution"]), make)
    decode(state, found, latents, make)
    return state


def checkpoint(found: Config, seed: int = 0) -> dict[str, Tensor]:
    """A `state_dict` of random weights, and the noise schedule that CompVis keeps beside them."""
    params = found["model"]["params"]
    betas = torch.linspace(params["linear_start"] ** 0.5, params["linear_end"] ** 0.5, 1000, dtype=torch.float64) ** 2
    schedule = {"betas": betas.float(), "alphas_cumprod": (1 - betas).cumprod(0).float()}
    return {**layout(found, noise(seed)), **schedule}


def written(folder: Path, found: Config, state: dict[str, Tensor], **more: Any) -> tuple[Path, Path]:
    """Write a checkpoint and its YAML file, and return their paths."""
    torch.save({"state_dict": state, "global_step": 7, **more}, folder / "model.ckpt")
    (folder / "config.yaml").write_text(yaml.safe_dump(found))
    return folder / "model.ckpt", folder / "config.yaml"


def sampled(
    state: Any, found: Config, labels: Tensor, latents: Tensor, num_steps: int, scale: float, unconditional: int
) -> Tensor:
    """Sample latents from labels (B,) and start noise, as CompVis' DDIM does at eta 0 with classifier-free guidance."""
    alphas = state["alphas_cumprod"]
    steps = torch.arange(0, 1000, 1000 // num_steps) + 1
    before = torch.cat([alphas[:1], alphas[steps[:-1]]])
    nothing = classes(state, found, torch.full_like(labels, unconditional))
    contexts = classes(state, found, labels)
    for t, alpha, alpha_before in reversed(list(zip(steps, alphas[steps], before, strict=True))):
        ts = t.expand(len(labels))
        without, conditional = (unet(state, found, latents, ts, context) for context in (nothing, contexts))
        noise = without + scale * (conditional - without)
        clean = (latents - (1 - alpha).sqrt() * noise) / alpha.sqrt()
        latents = alpha_before.sqrt() * clean + (1 - alpha_before).sqrt() * noise
    return latents
