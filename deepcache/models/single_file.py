"""Pipelines out of single files: CompVis' latent diffusion, and Stable Diffusion's, whose tokenizer lies elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import SingleFileComponentError, fetch_diffusers_config

from deepcache.errors import DeepCacheError, first_line
from deepcache.models.catalog import CATALOG, INDEX, home, snapshot
from deepcache.models.checkpoint import readable, weights
from deepcache.models.folders import moved, pipeline_class
from deepcache.models.ldm import ldm_pipeline
from deepcache.models.ldm_names import CLASSES


def load_single_file(path: Path) -> Any:
    """A pipeline in float32 on the CPU.

    Raises:
        DeepCacheError: the file cannot be read, carries code, or needs a configuration that is not here.
    """
    state = weights(path)
    if f"{CLASSES}embedding.weight" in state:
        return ldm_pipeline(state, str(path))
    folder = _configuration(path, fetch_diffusers_config(state)["pretrained_model_name_or_path"])
    del state
    options = {"safety_checker": None} if "Safety" in (folder / INDEX).read_text() else {}
    build = pipeline_class(folder)
    try:
        with readable(path):
            loaded = build.from_single_file(str(path), config=str(folder), local_files_only=True, **options)
            return moved(loaded, torch.float32)
    except SingleFileComponentError as error:
        raise DeepCacheError(f"expected all networks of a {build.__name__} in {path}: {first_line(error)}") from error


def configuration(path: Path) -> str:
    """What tells a file's networks: the folder of their configurations, or the name of CompVis' latent diffusion.

    Raises:
        DeepCacheError: as `load_single_file`.
    """
    state = weights(path)
    if f"{CLASSES}embedding.weight" not in state:
        return str(_configuration(path, fetch_diffusers_config(state)["pretrained_model_name_or_path"]))
    ldm_pipeline(state, str(path))  # which refuses other networks than these
    return "ldm-4-g"


def _configuration(path: Path, hub_id: str) -> Path:
    """The folder that tells a file's networks and has its tokenizer: the hub's cache, or the folder of models."""
    known = [found for found in CATALOG.values() if hub_id in (found.source, *found.mirrors)]
    for folder in _folders(hub_id, known):
        if folder is not None and (folder / INDEX).is_file():
            return folder
    names = [found.name for found in known]
    raise DeepCacheError(
        f"expected the configuration and tokenizer of {hub_id} for {path}, which are not here; fetch "
        f"`hf download {known[0].source if known else hub_id} --include '*.json' '*.txt'`"
        + (f", or put them into {home() / names[0]}" if names else "")
    )


def _folders(hub_id: str, known: Iterable[Any]) -> list[Path | None]:
    ids = [hub_id, *(other for found in known for other in (found.source, *found.mirrors))]
    return [*(snapshot(other) for other in ids), *(home() / found.name for found in known)]
