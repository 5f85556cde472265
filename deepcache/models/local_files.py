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
_DEFAULT_HOME = "~/.cache/deepcache/models"
_CKPT = "model.ckpt"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def home() -> Path:
    """The folder of models: `DEEPCACHE_MODELS`, or `~/.cache/deepcache/models` where the variable is not set."""
    return Path(os.environ.get(HOME) or _DEFAULT_HOME).expanduser()


def destination(model: Model) -> Path:
    """Where a user should put the files of a published model."""
    return home() / (f"{model.name}.ckpt" if model.is_single_file else model.name)


def located(model: Model) -> Path:
    """Return the folder or the single file of a published model: the first complete one in `home()` or the hub's cache.

    Raises:
        DeepCacheError: the files are not here, or not all of them; the message says where to get them.
    """
    found = _candidates(model)
    missing = {path: _missing(model, path) for path in found}
    for path, patterns in missing.items():
        if not patterns:
            return path
    if found:
        first = found[0]
        raise DeepCacheError(f"expected {', '.join(missing[first])} in {first}, got no such file; {_remedy(model)}")
    raise DeepCacheError(f"expected {model.name} (licence: {model.licence}), which is not here; {_remedy(model)}")


def snapshot(hub_id: str) -> Path | None:
    """The folder of a repository in the hub's cache; None if the cache does not hold its pipeline."""
    try:
        found = try_to_load_from_cache(hub_id, INDEX)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def is_hub_id(name: str) -> bool:
    """Whether a name has the form of a repository on the hub: owner/name."""
    return _HUB_ID.fullmatch(name) is not None


def repository(hub_id: str) -> Path:
    """The folder of a repository in the hub's cache.

    Raises:
        DeepCacheError: the cache does not hold its pipeline.
    """
    folder = snapshot(hub_id)
    if folder is None:
        raise DeepCacheError(
            f"expected {hub_id} in the hub's cache, which does not hold it; fetch it: `hf download {hub_id}`, "
            "or pass a folder or a file"
        )
    return folder


def _remedy(model: Model) -> str:
    source = model.source
    how = f"{source}, and put it at" if model.is_single_file else f"`hf download {source}`, or put its folder at"
    return f"fetch it: {how} {destination(model)} (${HOME} names the folder of models)"


def _candidates(model: Model) -> list[Path]:
    """The folders and files that exist under the names that a model may have here."""
    own = [home() / model.name / _CKPT, home() / model.name, *(home() / (model.name + end) for end in SUFFIXES)]
    cached = [] if model.is_single_file else [snapshot(hub_id) for hub_id in (model.source, *model.mirrors)]
    return [path for path in (*own, *cached) if path is not None and path.exists()]


def _missing(model: Model, path: Path) -> list[str]:
    """The patterns that no file of a folder fits.

    A single file misses nothing; the folder beside a single file may hold no more than its configuration.
    """
    return [pattern for pattern in model.files if not _has(path, pattern)] if path.is_dir() else []


def _has(folder: Path, pattern: str) -> bool:
    """Whether a file fits a pattern; hidden files do not count, since some systems keep copies beside the files."""
    return any(not path.name.startswith(".") for path in folder.glob(pattern))
