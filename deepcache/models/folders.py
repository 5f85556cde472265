"""Pipelines out of diffusers folders."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

from deepcache.errors import DeepCacheError
from deepcache.models.catalog import INDEX
from deepcache.models.checkpoint import readable
from deepcache.models.class_conditional import ClassConditionalPipeline
from deepcache.models.configurations import read


def load_folder(folder: Path, **parts: Any) -> Any:
    """A pipeline in float32 on the CPU; `parts` take the place of the folder's own. Nothing is downloaded.

    A safety checker is left out: it blackens samples, and what is measured are the model's own.

    Raises:
        DeepCacheError: no pipeline of diffusers or of this package, or weights that cannot be read.
    """
    build, index = pipeline_class(folder), read(folder / INDEX)
    options: dict[str, Any] = {
        "local_files_only": True,
        "low_cpu_mem_usage": find_spec("accelerate") is not None,
        "variant": "fp16" if _is_fp16_alone(folder) else None,
    }
    if "safety_checker" in index:
        options |= {"safety_checker": None, "requires_safety_checker": False}
    with readable(folder):
        return moved(build.from_pretrained(folder, **options, **parts), torch.float32)


def pipeline_class(folder: Path) -> Any:
    """What a folder's index names.

    Raises:
        DeepCacheError: no index, or another class.
    """
    kind = read(folder / INDEX).get("_class_name")
    if kind == ClassConditionalPipeline.__name__:
        return ClassConditionalPipeline
    found = getattr(diffusers, kind, None) if isinstance(kind, str) else None  # a list names code in the folder
    if not (isinstance(found, type) and issubclass(found, diffusers.DiffusionPipeline)):
        raise DeepCacheError(f"expected a pipeline of diffusers in {folder}, got {kind!r}; pass another folder")
    return found


def moved(pipe: Any, dtype: torch.dtype, device: str | torch.device = "cpu") -> Any:
    """The pipeline with its networks in a dtype, on a device."""
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            nn.Module.to(part, device, dtype)  # diffusers' own warns of whatever is cast
    return pipe


def _is_fp16_alone(folder: Path) -> bool:
    names = [path.name for path in folder.rglob("*") if path.suffix in (".safetensors", ".bin")]
    return bool(names) and all(".fp16." in name for name in names)
