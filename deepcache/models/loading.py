"""From a name, a folder or a single file to a ready pipeline, on a device of this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import SingleFileComponentError, fetch_diffusers_config
from torch import Tensor

from deepcache.errors import DeepCacheError, first_line, shown
from deepcache.models import checkpoint, embedded
from deepcache.models.checkpoint import bounded, read, readable
from deepcache.models.folders import UNSAFE, load_folder, moved, pipeline_class
from deepcache.models.ldm import CLASSES, ldm_pipeline
from deepcache.models.local_files import INDEX, home, is_hub_id, located, repository, snapshot
from deepcache.models.random_weights import random_pipeline
from deepcache.models.registry import EMBEDDED, MODELS


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


def _trained(name: str) -> Any:
    if name in EMBEDDED:
        return embedded.load(name)
    path = located(MODELS[name]) if name in MODELS else Path(name)
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


def load_single_file(path: Path) -> Any:
    """The pipeline in a single file of CompVis' latent diffusion or of Stable Diffusion, in float32 on the CPU.

    Raises:
        DeepCacheError: the file cannot be read, carries code, or needs a configuration that is not here.
    """
    state = checkpoint.weights(path)
    if f"{CLASSES}embedding.weight" in state:
        return ldm_pipeline(state, str(path))
    folder = _configuration(path, state)
    del state
    build, options = pipeline_class(folder), {UNSAFE: None} if UNSAFE in read(folder / INDEX) else {}
    with readable(path), bounded():
        try:
            found = build.from_single_file(str(path), config=str(folder), local_files_only=True, **options)
        except SingleFileComponentError as error:
            what = f"expected all networks of a {build.__name__} in {path}"
            raise DeepCacheError(f"{what}: {first_line(error)}") from error
        return moved(found, torch.float32)


def configuration(path: Path) -> str:
    """The folder with the configurations of a single file's networks; "ldm-4-g" for CompVis' latent diffusion."""
    state = checkpoint.weights(path)
    if f"{CLASSES}embedding.weight" not in state:
        return str(_configuration(path, state))
    ldm_pipeline(state, str(path))  # refuses the weights of other networks
    return "ldm-4-g"


def _configuration(path: Path, state: dict[str, Tensor]) -> Path:
    """The folder, in the hub's cache or in the folder of models, with a file's configurations and tokenizer."""
    with readable(path):  # diffusers raises if no known model has weights of these shapes
        hub_id = fetch_diffusers_config(state)["pretrained_model_name_or_path"]
    known = [model for model in MODELS.values() if hub_id in (model.source, *model.mirrors)]
    hub_ids = [hub_id, *(other for model in known for other in (model.source, *model.mirrors))]
    for folder in (*map(snapshot, hub_ids), *(home() / model.name for model in known)):
        if folder is not None and (folder / INDEX).is_file():
            return folder
    source, place = (known[0].source, f", or put them into {home() / known[0].name}") if known else (hub_id, "")
    raise DeepCacheError(
        f"expected the configuration and tokenizer of {hub_id} for {path}, which are not here; fetch "
        f"`hf download {source} --include '*.json' '*.txt'`{place}"
    )


def usual_device() -> str:
    """The first CUDA device if there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def require_device(device: str | torch.device, *, has_values: bool = True) -> None:
    """Refuse a device that this machine does not have, and `meta` if tensors on the device must have values."""
    try:
        found = torch.zeros(1, device=device)
        if has_values:
            found.item()
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise DeepCacheError(
            f"expected a device of this machine, got {shown(str(device))}; pass cpu or cuda"
        ) from error
