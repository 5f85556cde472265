"""From a name, a folder or a file to a ready pipeline, on a device of this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from deepcache.errors import DeepCacheError, shown
from deepcache.models import embedded
from deepcache.models.folders import load_folder, moved
from deepcache.models.local_files import is_hub_id, located, repository
from deepcache.models.random_weights import random_pipeline
from deepcache.models.registry import MODELS
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
        name: a name of `MODELS`, a hub id whose files lie in the hub's cache, a diffusers folder, or a single file
            (`.ckpt`, `.safetensors`). A path wins over a hub id.
        weights: "trained", or "random" for the architecture of a published model filled with noise.
        dtype: dtype of the networks.
        device: device of the networks.

    Returns:
        The pipeline of the model's kind: `ClassConditionalPipeline` for mini-ldm and ldm-4-g, `DDPMPipeline` for
        mini-ddpm and ddpm-*, Stable Diffusion's pipelines for the others; for a folder, the pipeline that it names.

    Raises:
        DeepCacheError: there is no such model, its files are not here or cannot be read, or there is no such device.
    """
    require_device(device, has_values=False)
    if weights == "random":
        return random_pipeline(str(name), dtype=dtype, device=device)
    if weights != "trained":
        raise DeepCacheError(f"expected weights 'trained' or 'random', got {weights!r}")
    return moved(_trained(str(name)), dtype, device)


def usual_device() -> str:
    """The first CUDA device if there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def require_device(device: str | torch.device, *, has_values: bool = True) -> None:
    """Refuse a device that this machine does not have.

    Args:
        device: the device.
        has_values: whether tensors on the device must have values; if so, `meta` is refused, which has shapes alone.

    Raises:
        DeepCacheError: there is no such device.
    """
    try:
        found = torch.zeros(1, device=device)
        if has_values:
            found.item()
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise DeepCacheError(
            f"expected a device of this machine, got {shown(str(device))}; pass cpu or cuda"
        ) from error


def _trained(name: str) -> Any:
    known = MODELS.get(name)
    if known is not None and known.is_embedded:
        return embedded.load(name)
    path = Path(name) if known is None else located(known)
    if os.path.isdir(path):  # unlike Path.is_dir, this also takes a name that is too long
        return load_folder(path)
    if os.path.isfile(path):
        return load_single_file(path)
    if not is_hub_id(name):
        raise DeepCacheError(
            f"expected a model out of {', '.join(MODELS)}, a hub id, a diffusers folder or a checkpoint file; "
            f"got {shown(name)}"
        )
    return load_folder(repository(name))
