"""Where the files of models lie on this machine: in the folder of models, in the hub's cache, or at a path."""

from __future__ import annotations

import os
import re
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from deepcache.errors import DeepCacheError, shown
from deepcache.models.registry import MODELS, Model

INDEX = "model_index.json"
HOME = "DEEPCACHE_MODELS"  # the environment variable that names the folder of models
SUFFIXES = (".ckpt", ".safetensors")


def home() -> Path:
    """The folder of models: `DEEPCACHE_MODELS`, or `~/.cache/deepcache/models` where the variable is not set."""
    return Path(os.environ.get(HOME) or "~/.cache/deepcache/models").expanduser()


def destination(model: Model) -> Path:
    """Where a user should put the files of a published model."""
    return home() / (f"{model.name}.ckpt" if model.is_single_file else model.name)


def located(model: Model) -> Path:
    """Return the folder or the single file of a published model: the first complete one in `home()` or the hub's cache.

    A single file is complete; the folder beside a single file may hold no more than its configuration. Hidden files do
    not count, since some systems keep copies. Where files are missing, a `DeepCacheError` says where to get them.
    """
    folder, lacking = home() / model.name, ""
    cached = filter(None, map(snapshot, (model.source, *model.mirrors)))
    for path in (folder / "model.ckpt", folder, *(home() / (model.name + suffix) for suffix in SUFFIXES), *cached):
        if path.exists():
            patterns = () if path.is_file() else model.files
            missing = [each for each in patterns if all(found.name.startswith(".") for found in path.glob(each))]
            if not missing:
                return path
            lacking = lacking or f"{', '.join(missing)} in {path}, got no such file"
    how = f"{model.source}, and put it" if model.is_single_file else f"`hf download {model.source}`, or put its folder"
    raise DeepCacheError(
        f"expected {lacking or f'{model.name} (licence: {model.licence}), which is not here'}; "
        f"fetch it: {how} at {destination(model)} (${HOME} names the folder of models)"
    )


def snapshot(hub_id: str) -> Path | None:
    """The folder of a repository in the hub's cache; None if the cache does not hold its pipeline."""
    try:
        found = try_to_load_from_cache(hub_id, INDEX)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def path_of(name: str) -> Path:
    """The path that a name is, or, for a hub id, the folder of its pipeline in the hub's cache. A path wins."""
    path = Path(name)
    if os.path.exists(path):  # unlike Path.exists, this also takes a name that is too long
        return path
    is_file = path.suffix.lower() in (".json", *SUFFIXES)  # a name of two parts may also be that of a missing file
    if is_file or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise DeepCacheError(
            f"expected a model out of {', '.join(MODELS)}, a hub id, a diffusers folder, a checkpoint file or a "
            f"config.json; got {shown(name)}"
        )
    folder = snapshot(name)
    if folder is None:
        raise DeepCacheError(
            f"expected {name} in the hub's cache, which does not hold it; fetch it: `hf download {name}`, "
            "or pass a folder or a file"
        )
    return folder
