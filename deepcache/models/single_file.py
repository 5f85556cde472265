"""Pipelines out of single files: CompVis' latent diffusion, and Stable Diffusion, whose tokenizer lies elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import SingleFileComponentError, fetch_diffusers_config
from torch import Tensor

from deepcache.errors import DeepCacheError, first_line
from deepcache.models.checkpoint import readable, weights
from deepcache.models.configurations import bounded, read
from deepcache.models.folders import UNSAFE, moved, pipeline_class
from deepcache.models.ldm import CLASSES, ldm_pipeline
from deepcache.models.local_files import INDEX, home, snapshot
from deepcache.models.registry import MODELS


def load_single_file(path: Path) -> Any:
    """The pipeline in a single file, in float32 on the CPU.

    Raises:
        DeepCacheError: the file cannot be read, carries code, or needs a configuration that is not here.
    """
    state = weights(path)
    if f"{CLASSES}embedding.weight" in state:
        return ldm_pipeline(state, str(path))
    folder = _configuration(path, state)
    del state
    options = {"safety_checker": None} if UNSAFE in read(folder / INDEX) else {}
    build = pipeline_class(folder)
    with readable(path), bounded():
        try:
            loaded = build.from_single_file(str(path), config=str(folder), local_files_only=True, **options)
        except SingleFileComponentError as error:
            raise DeepCacheError(
                f"expected all networks of a {build.__name__} in {path}: {first_line(error)}"
            ) from error
        return moved(loaded, torch.float32)


def configuration(path: Path) -> str:
    """The folder that holds the configurations of a file's networks, or "ldm-4-g" for CompVis' latent diffusion.

    Raises:
        DeepCacheError: as for `load_single_file`.
    """
    state = weights(path)
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
    names = [model.name for model in known]
    raise DeepCacheError(
        f"expected the configuration and tokenizer of {hub_id} for {path}, which are not here; fetch "
        f"`hf download {known[0].source if known else hub_id} --include '*.json' '*.txt'`"
        + (f", or put them into {home() / names[0]}" if names else "")
    )
