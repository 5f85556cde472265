"""Pipelines out of diffusers folders, and into them."""

from __future__ import annotations

import os
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.utils import DummyObject, is_accelerate_available
from diffusers.utils.import_utils import BACKENDS_MAPPING
from safetensors import SafetensorError
from torch import nn

from deepcache.errors import DeepCacheError, first_line, shown
from deepcache.files import MOST_BYTES
from deepcache.models.checkpoint import bounded, read, readable
from deepcache.models.class_conditional import ClassConditionalPipeline
from deepcache.models.local_files import INDEX

UNSAFE = "safety_checker"
_LIBRARIES = ("diffusers", "transformers", ClassConditionalPipeline.__module__)
_TEXTS = (".json", ".txt", ".model")
_MOST_TIMESTEPS = 100_000  # a scheduler keeps tables for so many; published schedulers have 1,000


def load_folder(folder: Path, **components: Any) -> Any:
    """The pipeline of a folder, in float32 on the CPU; `components` take the place of the folder's.

    The safety checker is left out: it blackens samples, and the model's own samples are to be measured.

    Raises:
        DeepCacheError: the folder holds no pipeline of diffusers or of this package, or not all of its weights.
    """
    with readable(folder), bounded():
        _require_small(folder)
        build, index = pipeline_class(folder), read(folder / INDEX)
        if "unet" not in index:
            raise DeepCacheError(
                f"expected a pipeline with a U-Net in {folder}, got {build.__name__} without; pass another"
            )
        entries = {name: entry for name, entry in index.items() if isinstance(entry, list) and len(entry) == 2}
        kinds = {name: _class_of(*entry) for name, entry in entries.items() if entry[0] in _LIBRARIES}
        networks = {
            name: network(folder / name if (folder / name).is_dir() else folder, kind)
            for name, kind in kinds.items()
            if name not in (*components, UNSAFE) and isinstance(kind, type) and issubclass(kind, nn.Module)
        }
        unchecked = {UNSAFE: None, "requires_safety_checker": False} if UNSAFE in index else {}
        options = {"local_files_only": True, "low_cpu_mem_usage": is_accelerate_available()}
        return moved(build.from_pretrained(folder, **options, **unchecked, **networks, **components), torch.float32)


def pipeline_class(folder: Path) -> Any:
    """The class of pipeline that a folder's index names; a `DeepCacheError` if it names none that can be used here."""
    kind = read(folder / INDEX).get("_class_name")
    if kind == ClassConditionalPipeline.__name__:
        return ClassConditionalPipeline
    found = _class_of("diffusers", kind) if isinstance(kind, str) else None  # a list names code in the folder
    if not (isinstance(found, type) and issubclass(found, diffusers.DiffusionPipeline)):
        raise DeepCacheError(f"expected a pipeline of diffusers in {folder}, got {shown(kind)}; pass another folder")
    return found


def network(folder: Path, build: Any) -> Any:
    """Load a network of the class `build`; missing weights, which the libraries would fill with noise, are refused."""
    names = [path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".bin") and path.name[0] != "."]
    is_half = bool(names) and all(".fp16." in name for name in names)
    options: dict[str, Any] = {"local_files_only": True, "variant": "fp16" if is_half else None}
    if not build.__module__.startswith("transformers."):
        options["low_cpu_mem_usage"] = is_accelerate_available()
    if os.path.isfile(folder / "config.json"):
        read(folder / "config.json")  # checks the bounds, before the libraries read the file without any
    found, told = build.from_pretrained(folder, output_loading_info=True, **options)
    if missing := sorted(told["missing_keys"]):
        raise DeepCacheError(
            f"expected all weights of a {build.__name__} in {folder}, got {len(missing)} missing (the first: "
            f"{missing[0]}); fetch it again"
        )
    return found


def moved(pipe: Any, dtype: torch.dtype, device: str | torch.device = "cpu") -> Any:
    """Move the networks of a pipeline to a dtype and a device, and return the pipeline."""
    for component in pipe.components.values():
        if isinstance(component, nn.Module):
            nn.Module.to(component, device, dtype)  # diffusers' method warns about every cast
    return pipe


def require_free(folder: Path) -> None:
    """Refuse to overwrite a file, or a folder that holds something, with a `DeepCacheError`."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise DeepCacheError(f"expected {folder} to be free or an empty folder, which it is not; pass another --out")


def save(pipe: Any, folder: Path) -> None:
    """Write a pipeline as a diffusers folder, whole or not at all; a `DeepCacheError` if the place is taken."""
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
    """Refuse large configurations and tokenizers, which diffusers and transformers read whole, and large schedulers."""
    for path in folder.rglob("*"):
        if path.suffix in _TEXTS and os.path.isfile(path) and path.stat().st_size > MOST_BYTES:
            raise DeepCacheError(f"expected at most {MOST_BYTES:,} bytes in {path}, which has more; fetch it again")
    for path in (folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json"):
        found = read(path).get("num_train_timesteps") if os.path.isfile(path) else None
        if found is not None and (type(found) is not int or not 1 <= found <= _MOST_TIMESTEPS):
            raise DeepCacheError(
                f"expected num_train_timesteps in 1..{_MOST_TIMESTEPS} in {path}, got {shown(found)}; correct it"
            )


def _class_of(library: str, kind: Any) -> Any:
    """A class of a library, or None; refuse one that diffusers replaces by a dummy because a package is missing."""
    if not isinstance(kind, str):
        raise TypeError(f"{library} has no class {shown(kind)}")
    found = getattr(import_module(library), kind, None)
    if isinstance(found, DummyObject):
        missing = [name for name in found._backends if not BACKENDS_MAPPING[name][0]()]
        raise DeepCacheError(
            f"{kind} needs {', '.join(missing)}, which is not installed; pip install {' '.join(missing)}"
        )
    return found
