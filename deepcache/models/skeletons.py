"""Pipelines by name as their networks' shapes: U-Net, text encoders and VAE on the meta device, without weights."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from deepcache.errors import DeepCacheError
from deepcache.example import FAILURES, guessed
from deepcache.models.architectures import architecture, read
from deepcache.models.embedded import EMBEDDED, WEIGHTS, pipeline_of

Network = tuple[str, str, dict[str, Any]]  # library, class, configuration

NETWORKS: dict[str, dict[str, Network]] = {
    "sd-1.5": {
        "text_encoder": (  # CLIP ViT-L/14's; 123.1 M parameters
            "transformers",
            "CLIPTextModel",
            {
                "vocab_size": 49408,
                "hidden_size": 768,
                "intermediate_size": 3072,
                "projection_dim": 768,
                "num_hidden_layers": 12,
                "num_attention_heads": 12,
                "max_position_embeddings": 77,
            },
        ),
        "vae": (  # 83.7 M parameters
            "diffusers",
            "AutoencoderKL",
            {
                "block_out_channels": (128, 256, 512, 512),
                "layers_per_block": 2,
                "down_block_types": ("DownEncoderBlock2D",) * 4,
                "up_block_types": ("UpDecoderBlock2D",) * 4,
                "latent_channels": 4,
                "sample_size": 512,
            },
        ),
    },
}
_NAMES = ("text_encoder", "text_encoder_2", "text_encoder_3", "vae", "vqvae", "movq")
_LIBRARIES = ("diffusers", "transformers")


def skeleton(name: str) -> tuple[SimpleNamespace, int | None]:
    """A pipeline's networks as attributes, and the length of its context where the model has one of its own.

    Args:
        name: as for `architecture`; of a single U-Net's configuration the U-Net alone.

    Raises:
        DeepCacheError: no such model, a configuration that cannot be read, or a library that is not installed.
    """
    known = architecture(name)
    with guessed("correct the configuration"):
        unet = known.meta()
    found = NETWORKS.get(name) or _stored(WEIGHTS / pipeline_of(name) if name in EMBEDDED else Path(name))
    networks = {part: _network(*network) for part, network in found.items()}
    return SimpleNamespace(unet=unet, **networks), known.context_tokens or None


def _stored(folder: Path) -> dict[str, Network]:
    """What a diffusers folder's `model_index.json` names, where there is one."""
    if not (folder / "model_index.json").is_file():
        return {}
    index = read(folder / "model_index.json")
    named = {name: index[name] for name in _NAMES if isinstance(index.get(name), list)}  # [library, class]
    return {
        name: (*entry, read(folder / name / "config.json"))
        for name, entry in named.items()
        if len(entry) == len(("library", "class")) and entry[0] in _LIBRARIES
    }


def _network(library: str, kind: str, config: dict[str, Any]) -> Any:
    try:
        build = getattr(import_module(library), kind)
        if not issubclass(build, nn.Module):
            raise TypeError(f"{kind} is no network")
        with torch.device("meta"):
            found = build.from_config(config) if library == "diffusers" else build(build.config_class(**config))
    except (ImportError, *FAILURES) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DeepCacheError(f"expected to build a {kind} of {library}, which is counted: {reason}") from error
    return found.eval()
