"""Pipelines by name as their networks' shapes: U-Net, text encoders and VAE on the meta device, without weights."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

from deepcache.errors import guessed
from deepcache.models.architectures import SHARED, architecture
from deepcache.models.configurations import read
from deepcache.models.embedded import EMBEDDED, WEIGHTS, pipeline_of
from deepcache.models.networks import NETWORKS, Network, on_meta

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
    folder = WEIGHTS / pipeline_of(name) if name in EMBEDDED else Path(name)
    found = NETWORKS.get(SHARED.get(name, name)) or _stored(folder)
    networks = {part: on_meta(*network) for part, network in found.items()}
    return SimpleNamespace(unet=unet, **networks), known.context_tokens or None


def _stored(folder: Path) -> dict[str, Network]:
    """What a diffusers folder's `model_index.json` names, where there is one."""
    if not os.path.isfile(folder / "model_index.json"):
        return {}
    index = read(folder / "model_index.json")
    named = {name: index[name] for name in _NAMES if isinstance(index.get(name), list)}  # [library, class]
    return {
        name: (*entry, read(folder / name / "config.json"))
        for name, entry in named.items()
        if len(entry) == len(("library", "class")) and entry[0] in _LIBRARIES and isinstance(entry[1], str)
    }
