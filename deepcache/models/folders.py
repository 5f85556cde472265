"""Pipelines out of diffusers folders."""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.utils import DummyObject
from diffusers.utils.import_utils import BACKENDS_MAPPING
from torch import nn

from deepcache.errors import DeepCacheError, shown
from deepcache.files import MOST_BYTES
from deepcache.models.catalog import INDEX
from deepcache.models.checkpoint import readable
from deepcache.models.class_conditional import ClassConditionalPipeline
from deepcache.models.configurations import bounded, read

_LIBRARIES = ("diffusers", "transformers", ClassConditionalPipeline.__module__)
UNSAFE = "safety_checker"
_TEXTS = (".json", ".txt", ".model")
_CONFIG, _SCHEDULER = "config.json", "scheduler_config.json"
MOST_TIMESTEPS = 100_000  # that a scheduler keeps tables for; the published ones have 1,000


def load_folder(folder: Path, **parts: Any) -> Any:
    """A pipeline in float32 on the CPU; `parts` take the place of the folder's own. Nothing is downloaded.

    A safety checker is left out: it blackens samples, and what is measured are the model's own.

    Raises:
        DeepCacheError: no pipeline of diffusers or of this package, or weights that are not all there.
    """
    _require_small(folder)
    build, index = pipeline_class(folder), read(folder / INDEX)
    if "unet" not in index:
        raise DeepCacheError(
            f"expected a pipeline with a U-Net in {folder}, got {build.__name__} without; pass another"
        )
    unchecked = {UNSAFE: None, "requires_safety_checker": False} if UNSAFE in index else {}
    for entry in index.values():
        if _is_class(entry) and entry[0] == "diffusers" and isinstance(entry[1], str):
            _require_packages(getattr(diffusers, entry[1], None))
    _require_timesteps(folder)
    with readable(folder), bounded():
        networks = {
            part: _network(folder / part if (folder / part).is_dir() else folder, *entry)
            for part, entry in index.items()
            if part not in (*parts, UNSAFE) and _is_network(entry)
        }
        options = {"local_files_only": True, "low_cpu_mem_usage": _has_accelerate()}
        pipe = build.from_pretrained(folder, **options, **unchecked, **networks, **parts)
        return moved(pipe, torch.float32)


def pipeline_class(folder: Path) -> Any:
    """What a folder's index names.

    Raises:
        DeepCacheError: no index, another class, or one for which diffusers needs a package that is not installed.
    """
    kind = read(folder / INDEX).get("_class_name")
    if kind == ClassConditionalPipeline.__name__:
        return ClassConditionalPipeline
    found = getattr(diffusers, kind, None) if isinstance(kind, str) else None  # a list names code in the folder
    _require_packages(found)
    if not (isinstance(found, type) and issubclass(found, diffusers.DiffusionPipeline)):
        raise DeepCacheError(f"expected a pipeline of diffusers in {folder}, got {shown(kind)}; pass another folder")
    return found


def moved(pipe: Any, dtype: torch.dtype, device: str | torch.device = "cpu") -> Any:
    """The pipeline with its networks in a dtype, on a device."""
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            nn.Module.to(part, device, dtype)  # diffusers' own warns of whatever is cast
    return pipe


def _require_small(folder: Path) -> None:
    """Refuse configurations and tokenizers that are too large: diffusers and transformers read them whole."""
    for path in folder.rglob("*"):
        if path.suffix in _TEXTS and os.path.isfile(path) and path.stat().st_size > MOST_BYTES:
            raise DeepCacheError(f"expected at most {MOST_BYTES:,} bytes in {path}, which has more; fetch it again")


def _require_timesteps(folder: Path) -> None:
    """Refuse a scheduler whose tables would take gigabytes; one that is not there is told by diffusers."""
    for file in (folder / "scheduler" / _SCHEDULER, folder / _SCHEDULER):
        if os.path.isfile(file):
            found = read(file).get("num_train_timesteps")
            if found is not None and (type(found) is not int or not 1 <= found <= MOST_TIMESTEPS):
                raise DeepCacheError(
                    f"expected num_train_timesteps in 1..{MOST_TIMESTEPS} in {file}, got {shown(found)}; correct it"
                )


def _is_network(entry: Any) -> bool:
    """Whether an entry of the index, [library, class], is a network that is known."""
    if not (_is_class(entry) and entry[0] in _LIBRARIES):
        return False
    if not isinstance(entry[1], str):
        raise TypeError(f"{entry[0]} has no class {shown(entry[1])}")
    kind = getattr(import_module(entry[0]), entry[1], None)
    return isinstance(kind, type) and issubclass(kind, nn.Module)


def _is_class(entry: Any) -> bool:
    """Whether an entry of the index is [library, class], both by name."""
    return isinstance(entry, list) and len(entry) == len(("library", "class"))


def _require_packages(kind: Any) -> None:
    """Refuse a class in whose place diffusers has a dummy, since a package is not installed."""
    if isinstance(kind, DummyObject):
        missing = [name for name in kind._backends if not BACKENDS_MAPPING[name][0]()]
        raise DeepCacheError(
            f"{kind.__name__} needs {', '.join(missing)}, which is not installed; pip install {' '.join(missing)}"
        )


def _network(place: Path, library: str, kind: str) -> Any:
    """A network with all of its weights: the libraries would fill in noise for those that are missing, and go on."""
    options: dict[str, Any] = {"local_files_only": True, "variant": "fp16" if _is_fp16_alone(place) else None}
    if library != "transformers":
        options["low_cpu_mem_usage"] = _has_accelerate()
    if os.path.isfile(place / _CONFIG):
        read(place / _CONFIG)  # within bounds, before the libraries read it without
    build = getattr(import_module(library), kind)
    network, told = build.from_pretrained(place, output_loading_info=True, **options)
    if missing := sorted(told["missing_keys"]):
        raise DeepCacheError(
            f"expected all weights of a {kind} in {place}, got {len(missing)} missing (the first: {missing[0]}); "
            "fetch it again"
        )
    return network


def _has_accelerate() -> bool:
    """Whether diffusers can load weights without a second copy; asked to without accelerate, it complains."""
    return find_spec("accelerate") is not None


def _is_fp16_alone(place: Path) -> bool:
    names = [path.name for path in place.iterdir() if path.suffix in (".safetensors", ".bin") and path.name[0] != "."]
    return bool(names) and all(".fp16." in name for name in names)
