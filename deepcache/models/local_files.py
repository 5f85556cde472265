"""Where the files of published models lie on this machine: in the folder of models, or in the hub's cache."""

from __future__ import annotations

import os
import re
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from deepcache.errors import DeepCacheError
from deepcache.models.registry import Model

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

    A single file is complete; the folder beside a single file may hold no more than its configuration. Where files are
    missing, a `DeepCacheError` says where to get them.
    """
    folder = home() / model.name
    own = (folder / "model.ckpt", folder, *(home() / (model.name + suffix) for suffix in SUFFIXES))
    cached = () if model.is_single_file else map(snapshot, (model.source, *model.mirrors))
    missing: dict[Path, list[str]] = {}
    path: Path | None
    for path in (*own, *cached):
        if path is not None and path.exists():
            missing[path] = [] if path.is_file() else [each for each in model.files if not _has(path, each)]
            if not missing[path]:
                return path
    source = model.source
    how = f"{source}, and put it at" if model.is_single_file else f"`hf download {source}`, or put its folder at"
    remedy = f"fetch it: {how} {destination(model)} (${HOME} names the folder of models)"
    if missing:
        path, patterns = next(iter(missing.items()))
        raise DeepCacheError(f"expected {', '.join(patterns)} in {path}, got no such file; {remedy}")
    raise DeepCacheError(f"expected {model.name} (licence: {model.licence}), which is not here; {remedy}")


def _has(folder: Path, pattern: str) -> bool:
    """Whether a file fits a pattern; hidden files do not count, since some systems keep copies beside the files."""
    return any(not path.name.startswith(".") for path in folder.glob(pattern))


def is_hub_id(name: str) -> bool:
    """Whether a name has the form of a repository on the hub: owner/name."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def snapshot(hub_id: str) -> Path | None:
    """The folder of a repository in the hub's cache; None if the cache does not hold its pipeline."""
    try:
        found = try_to_load_from_cache(hub_id, INDEX)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def repository(hub_id: str) -> Path:
    """The folder of a repository in the hub's cache, which must hold its pipeline; else there is a `DeepCacheError`."""
    folder = snapshot(hub_id)
    if folder is None:
        raise DeepCacheError(
            f"expected {hub_id} in the hub's cache, which does not hold it; fetch it: `hf download {hub_id}`, "
            "or pass a folder or a file"
        )
    return folder
