"""Pipelines out of diffusers folders."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.utils import DummyObject
from diffusers.utils.import_utils import BACKENDS_MAPPING
from torch import nn

from deepcache.errors import DeepCacheError
from deepcache.models.catalog import INDEX
from deepcache.models.checkpoint import readable
from deepcache.models.class_conditional import ClassConditionalPipeline
from deepcache.models.configurations import read

_LIBRARIES = ("diffusers", "transformers", ClassConditionalPipeline.__module__)
_UNSAFE = "safety_checker"


def load_folder(folder: Path, **parts: Any) -> Any:
    """A pipeline in float32 on the CPU; `parts` take the place of the folder's own. Nothing is downloaded.

    A safety checker is left out: it blackens samples, and what is measured are the model's own.

    Raises:
        DeepCacheError: no pipeline of diffusers or of this package, or weights that are not all there.
    """
    build, index = pipeline_class(folder), read(folder / INDEX)
    if "unet" not in index:
        raise DeepCacheError(
            f"expected a pipeline with a U-Net in {folder}, got {build.__name__} without; pass another"
        )
    unchecked = {_UNSAFE: None, "requires_safety_checker": False} if _UNSAFE in index else {}
    for entry in index.values():
        if _is_class(entry) and entry[0] == "diffusers":
            _require_packages(getattr(diffusers, entry[1], None))
    with readable(folder):
        networks = {
            part: _network(folder / part if (folder / part).is_dir() else folder, *entry)
            for part, entry in index.items()
            if part not in (*parts, _UNSAFE) and _is_network(entry)
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
        raise DeepCacheError(f"expected a pipeline of diffusers in {folder}, got {kind!r}; pass another folder")
    return found


def moved(pipe: Any, dtype: torch.dtype, device: str | torch.device = "cpu") -> Any:
    """The pipeline with its networks in a dtype, on a device."""
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            nn.Module.to(part, device, dtype)  # diffusers' own warns of whatever is cast
    return pipe


def _is_network(entry: Any) -> bool:
    """Whether an entry of the index, [library, class], is a network that is known."""
    if not (_is_class(entry) and entry[0] in _LIBRARIES):
        return False
    kind = getattr(import_module(entry[0]), entry[1], None)
    return isinstance(kind, type) and issubclass(kind, nn.Module)


def _is_class(entry: Any) -> bool:
    """Whether an entry of the index is [library, class], both by name."""
    return isinstance(entry, list) and len(entry) == len(("library", "class")) and isinstance(entry[1], str)


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
    names = [path.name for path in place.iterdir() if path.suffix in (".safetensors", ".bin")]
    return bool(names) and all(".fp16." in name for name in names)
