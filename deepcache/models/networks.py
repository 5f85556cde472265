"""The networks beside the U-Net of the real models, and their schedulers: configurations, without weights."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import nn

from deepcache.errors import DeepCacheError, first_line
from deepcache.example import FAILURES
from deepcache.models.ldm_config import (
    CIN256_V2,
    LdmConfig,
    classes_config,
    scheduler_config,
    unet_config,
    vqvae_config,
)

Network = tuple[str, str, dict[str, Any]]  # library, class, configuration


def on_meta(library: str, kind: str, config: dict[str, Any]) -> Any:
    """A network's shapes, without memory.

    Raises:
        DeepCacheError: no such network, or a configuration that is wrong.
    """
    try:
        build = getattr(import_module(library), kind)
        if not issubclass(build, nn.Module):
            raise TypeError(f"{kind} is no network")
        with torch.device("meta"):
            is_text = library == "transformers"
            found = build(build.config_class(**config)) if is_text else build.from_config(config)
    except (ImportError, *FAILURES) as error:
        raise DeepCacheError(f"expected to build a {kind} of {library}: {first_line(error)}") from error
    return found.eval()


def ldm_networks(config: LdmConfig) -> dict[str, Network]:
    """Of a class-conditional latent diffusion model."""
    return {
        "unet": ("diffusers", "UNet2DConditionModel", unet_config(config)),
        "vqvae": ("diffusers", "VQModel", vqvae_config(config)),
        "class_embedder": ("deepcache.models.class_conditional", "ClassEmbedder", classes_config(config)),
    }


def _clip(kind: str, width: int, layers: int, **config: Any) -> Network:
    """A text encoder of CLIP's shape: heads of 64 channels, 77 tokens."""
    return (
        "transformers",
        kind,
        {
            "vocab_size": 49408,
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": width // 64,
            "max_position_embeddings": 77,
            "projection_dim": width,
            **config,
        },
    )


def _kl(sample_size: int, **config: Any) -> Network:
    """Stable Diffusion's autoencoder; 83.7 M parameters."""
    return (
        "diffusers",
        "AutoencoderKL",
        {
            "block_out_channels": (128, 256, 512, 512),
            "layers_per_block": 2,
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "latent_channels": 4,
            "sample_size": sample_size,
            **config,
        },
    )


_CLIP_L = _clip("CLIPTextModel", 768, 12)  # ViT-L/14's; 123.1 M parameters
_SD_1 = {"text_encoder": _CLIP_L, "vae": _kl(512)}
_LDM = ldm_networks(CIN256_V2)

NETWORKS: dict[str, dict[str, Network]] = {
    "ldm-4-g": {part: _LDM[part] for part in ("vqvae", "class_embedder")},
    "sd-1.5": _SD_1,
    "sd-2.1": {  # OpenCLIP ViT-H/14's without its last layer; 340.4 M parameters
        "text_encoder": _clip("CLIPTextModel", 1024, 23, hidden_act="gelu", projection_dim=512),
        "vae": _kl(768),
    },
    "sdxl": {
        "text_encoder": _CLIP_L,
        "text_encoder_2": _clip("CLIPTextModelWithProjection", 1280, 32, hidden_act="gelu"),  # OpenCLIP ViT-bigG/14's
        "vae": _kl(1024, scaling_factor=0.13025, force_upcast=True),
    },
    "bk-sdm-base": _SD_1,
    "bk-sdm-small": _SD_1,
    "bk-sdm-tiny": _SD_1,
}

_LATENT = {  # Stable Diffusion's noise
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
_PNDM = ("PNDMScheduler", {**_LATENT, "skip_prk_steps": True, "set_alpha_to_one": False})
_DDPM = ("DDPMScheduler", {"beta_start": 0.0001, "beta_end": 0.02, "variance_type": "fixed_large"})
MODEL_SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {  # class in diffusers, configuration
    "ldm-4-g": ("DDIMScheduler", scheduler_config(CIN256_V2)),
    "ddpm-cifar10": _DDPM,
    "ddpm-lsun": _DDPM,
    "sd-1.5": _PNDM,
    "sd-2.1": (
        "DDIMScheduler",
        {**_LATENT, "set_alpha_to_one": False, "clip_sample": False, "prediction_type": "v_prediction"},
    ),
    "sdxl": ("EulerDiscreteScheduler", {**_LATENT, "timestep_spacing": "leading"}),
    "bk-sdm-base": _PNDM,
    "bk-sdm-small": _PNDM,
    "bk-sdm-tiny": _PNDM,
}
