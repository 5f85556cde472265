"""A name, a folder or a file, to a ready pipeline."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from deepcache.errors import DeepCacheError, shown
from deepcache.models import embedded
from deepcache.models.catalog import CATALOG, is_hub_id, repository
from deepcache.models.devices import require_device
from deepcache.models.folders import load_folder, moved
from deepcache.models.random_weights import random_pipeline
from deepcache.models.single_file import load_single_file


def load(
    name: str | Path,
    *,
    weights: str = "trained",
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> Any:
    """A model as a diffusers pipeline. Nothing is ever downloaded.

        pipe = deepcache.models.load("mini-ldm")
        pipe(class_labels=[3, 7], num_inference_steps=50, guidance_scale=1.5).images

    Args:
        name: an embedded model, one of `CATALOG`, a hub id whose files lie in the hub's cache, a diffusers folder, or a
            single file (`.ckpt`, `.safetensors`). A path wins over a hub id.
        weights: "trained", or "random" for the real architecture of a name in `CATALOG` filled with noise.
        dtype: of the networks.
        device: where they go.

    Returns:
        The pipeline of the model's kind: `ClassConditionalPipeline` for mini-ldm and ldm-4-g, `DDPMPipeline` for
        mini-ddpm and ddpm-*, those of Stable Diffusion for the others; a folder's own.

    Raises:
        DeepCacheError: no such model, its files are not here or cannot be read, or no such device.
    """
    require_device(device, has_values=False)
    if weights == "random":
        return random_pipeline(str(name), dtype=dtype, device=device)
    if weights != "trained":
        raise DeepCacheError(f"expected weights 'trained' or 'random', got {weights!r}")
    return moved(_trained(str(name)), dtype, device)


def _trained(name: str) -> Any:
    if name in embedded.EMBEDDED:
        return embedded.load(name)
    place = CATALOG[name].located() if name in CATALOG else Path(name)
    if os.path.isdir(place):  # unlike Path.is_dir, also for a name that is too long
        return load_folder(place)
    if os.path.isfile(place):
        return load_single_file(place)
    if not is_hub_id(name):
        known = ", ".join([*embedded.EMBEDDED, *CATALOG])
        raise DeepCacheError(
            f"expected a model out of {known}, a hub id, a diffusers folder or a checkpoint file; got {shown(name)}"
        )
    return load_folder(repository(name))
