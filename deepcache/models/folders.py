"""Pipelines out of diffusers folders, and into them."""

from __future__ import annotations

import os
import shutil
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.utils import DummyObject
from diffusers.utils.import_utils import BACKENDS_MAPPING
from safetensors import SafetensorError
from torch import nn

from deepcache.errors import DeepCacheError, first_line, shown
from deepcache.files import MOST_BYTES
from deepcache.models.checkpoint import readable
from deepcache.models.class_conditional import ClassConditionalPipeline
from deepcache.models.configurations import bounded, read
from deepcache.models.local_files import INDEX

_LIBRARIES = ("diffusers", "transformers", ClassConditionalPipeline.__module__)
UNSAFE = "safety_checker"
_TEXTS = (".json", ".txt", ".model")
_CONFIG, _SCHEDULER = "config.json", "scheduler_config.json"
MOST_TIMESTEPS = 100_000  # a scheduler keeps tables for so many; published schedulers have 1,000


def load_folder(folder: Path, **components: Any) -> Any:
    """The pipeline of a folder, in float32 on the CPU. Nothing is downloaded.

    The safety checker is left out: it blackens samples, and the model's own samples are to be measured.

    Args:
        folder: a diffusers folder.
        **components: components that take the place of the folder's.

    Raises:
        DeepCacheError: the folder holds no pipeline of diffusers or of this package, or not all of its weights.
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
            component: _network(folder / component if (folder / component).is_dir() else folder, *entry)
            for component, entry in index.items()
            if component not in (*components, UNSAFE) and _is_network(entry)
        }
        options = {"local_files_only": True, "low_cpu_mem_usage": _has_accelerate()}
        pipe = build.from_pretrained(folder, **options, **unchecked, **networks, **components)
        return moved(pipe, torch.float32)


def pipeline_class(folder: Path) -> Any:
    """The class of pipeline that a folder's index names.

    Raises:
        DeepCacheError: the folder has no index, the index names another class, or diffusers needs a package for the
            class that is not installed.
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
    """Move the networks of a pipeline to a dtype and a device, and return the pipeline."""
    for component in pipe.components.values():
        if isinstance(component, nn.Module):
            nn.Module.to(component, device, dtype)  # diffusers' method warns about every cast
    return pipe


def require_free(folder: Path) -> None:
    """Refuse to overwrite something.

    Raises:
        DeepCacheError: the path is a file, or a folder that holds something.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise DeepCacheError(f"expected {folder} to be free or an empty folder, which it is not; pass another --out")


def save(pipe: Any, folder: Path) -> None:
    """Write a pipeline as a diffusers folder, whole or not at all.

    The folder is written beside its place under another name, and then renamed.

    Raises:
        DeepCacheError: the place is taken, or the folder cannot be written.
    """
    require_free(folder)
    folder = folder.absolute()
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        pipe.save_pretrained(partial, safe_serialization=True)
        os.replace(partial, folder)
    except (OSError, SafetensorError) as error:
        raise DeepCacheError(f"expected to write {folder}, got: {first_line(error)}; nothing of it is left") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _require_small(folder: Path) -> None:
    """Refuse large configurations and tokenizers, since diffusers and transformers read them whole."""
    for path in folder.rglob("*"):
        if path.suffix in _TEXTS and os.path.isfile(path) and path.stat().st_size > MOST_BYTES:
            raise DeepCacheError(f"expected at most {MOST_BYTES:,} bytes in {path}, which has more; fetch it again")


def _require_timesteps(folder: Path) -> None:
    """Refuse a scheduler whose tables would take gigabytes; a missing scheduler is refused by diffusers."""
    for file in (folder / "scheduler" / _SCHEDULER, folder / _SCHEDULER):
        if os.path.isfile(file):
            found = read(file).get("num_train_timesteps")
            if found is not None and (type(found) is not int or not 1 <= found <= MOST_TIMESTEPS):
                raise DeepCacheError(
                    f"expected num_train_timesteps in 1..{MOST_TIMESTEPS} in {file}, got {shown(found)}; correct it"
                )


def _is_network(entry: Any) -> bool:
    """Whether an entry of the index names a network of a known library."""
    if not (_is_class(entry) and entry[0] in _LIBRARIES):
        return False
    if not isinstance(entry[1], str):
        raise TypeError(f"{entry[0]} has no class {shown(entry[1])}")
    kind = getattr(import_module(entry[0]), entry[1], None)
    return isinstance(kind, type) and issubclass(kind, nn.Module)


def _is_class(entry: Any) -> bool:
    """Whether an entry of the index has the form [library, class]."""
    return isinstance(entry, list) and len(entry) == len(("library", "class"))


def _require_packages(kind: Any) -> None:
    """Refuse a class that diffusers replaces by a dummy because a package is not installed."""
    if isinstance(kind, DummyObject):
        missing = [name for name in kind._backends if not BACKENDS_MAPPING[name][0]()]
        raise DeepCacheError(
            f"{kind.__name__} needs {', '.join(missing)}, which is not installed; pip install {' '.join(missing)}"
        )


def _network(folder: Path, library: str, kind: str) -> Any:
    """Load a network, and refuse missing weights, which the libraries would silently fill with noise."""
    options: dict[str, Any] = {"local_files_only": True, "variant": "fp16" if _is_fp16_alone(folder) else None}
    if library != "transformers":
        options["low_cpu_mem_usage"] = _has_accelerate()
    if os.path.isfile(folder / _CONFIG):
        read(folder / _CONFIG)  # checks the bounds, before the libraries read the file without any
    build = getattr(import_module(library), kind)
    network, told = build.from_pretrained(folder, output_loading_info=True, **options)
    if missing := sorted(told["missing_keys"]):
        raise DeepCacheError(
            f"expected all weights of a {kind} in {folder}, got {len(missing)} missing (the first: {missing[0]}); "
            "fetch it again"
        )
    return network


def _has_accelerate() -> bool:
    """Whether diffusers can load weights without a second copy, for which it needs accelerate."""
    return find_spec("accelerate") is not None


def _is_fp16_alone(folder: Path) -> bool:
    """Whether all weights in a folder are in half precision."""
    names = [path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".bin") and path.name[0] != "."]
    return bool(names) and all(".fp16." in name for name in names)
