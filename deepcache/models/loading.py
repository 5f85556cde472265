"""From a name, a folder or a single file to a ready pipeline on a device of this machine, and into a folder."""

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
from deepcache.files import MOST_BYTES, as_path
from deepcache.models.architectures import configuration, random_pipeline
from deepcache.models.checkpoint import bounded, read, readable
from deepcache.models.checkpoint import weights as tensors
from deepcache.models.class_conditional import ClassConditionalPipeline
from deepcache.models.embedded import folder_of
from deepcache.models.ldm import ldm_pipeline
from deepcache.models.ldm_config import CIN256_V2, read_config
from deepcache.models.local_files import INDEX, located, path_of
from deepcache.models.registry import EMBEDDED, MODELS

Place = str | Path
Device = str | torch.device
_UNSAFE = "safety_checker"
_LIBRARIES = ("diffusers", "transformers", ClassConditionalPipeline.__module__)
_TEXTS = (".json", ".txt", ".model")
_CONFIGS = ("config.json", "scheduler_config.json")
_MOST_TIMESTEPS = 100_000  # a scheduler keeps tables for so many; published schedulers have 1,000
_OPTIONS = {"local_files_only": True, "low_cpu_mem_usage": is_accelerate_available()}


def load(name: Place, *, weights: str = "trained", dtype: torch.dtype = torch.float32, device: Device = "cpu") -> Any:
    """A model as a diffusers pipeline, of the class that its folder names. Nothing is ever downloaded.

        pipe = deepcache.models.load("mini-ldm")
        pipe(class_labels=[3, 7], num_inference_steps=50, guidance_scale=1.5).images

    Args:
        name: a name of `MODELS`, a hub id whose files lie in the hub's cache, a diffusers folder, or a single file
            (`.ckpt`, `.safetensors`). A path wins over a hub id.
        weights: "trained", or "random" for the architecture of a published model filled with noise.
        dtype, device: of the networks.

    Raises:
        DeepCacheError: there is no such model, its files are not here or cannot be read, or there is no such device.
    """
    require_device(device, has_values=False)
    name = str(name)
    if weights == "random":
        return random_pipeline(name, dtype=dtype, device=device)
    if weights != "trained":
        raise DeepCacheError(f"expected weights 'trained' or 'random', got {weights!r}")
    if name in EMBEDDED:
        return moved(load_folder(folder_of(MODELS[name].base or name), folder_of(name) / "unet"), dtype, device)
    path = located(MODELS[name]) if name in MODELS else path_of(name)
    return moved(load_folder(path) if path.is_dir() else load_single_file(path), dtype, device)


def load_ldm(
    checkpoint: Place, config: Place | None = None, *, dtype: torch.dtype = torch.float32, device: Device = "cpu"
) -> ClassConditionalPipeline:
    """A checkpoint in the layout of https://github.com/CompVis/latent-diffusion, as a pipeline.

        pipe = deepcache.models.load_ldm("model.ckpt")
        pipe(class_labels=[207], num_inference_steps=250, guidance_scale=1.5).images

    The U-Net gets the averaged weights (`model_ema`) where the configuration says `use_ema` and the checkpoint has
    them, as in CompVis' samplers; cin256-v2 does not use them. The last class stands for no class.

    Args:
        checkpoint: a `.ckpt` or `.safetensors` file. No code in the file is ever run.
        config: CompVis' YAML; the configuration of cin256-v2 if None.
        dtype, device: as in `load`.

    Raises:
        DeepCacheError: a file cannot be read, carries code, lacks a field or has another architecture's weights.
    """
    found = CIN256_V2 if config is None else read_config(as_path(config, "CompVis' YAML"))
    pipe = ldm_pipeline(tensors(as_path(checkpoint, "a checkpoint")), str(checkpoint), found)
    return moved(pipe, dtype, device)  # type: ignore[no-any-return]


def load_single_file(path: Path) -> Any:
    """The pipeline in a single file of CompVis' latent diffusion or of Stable Diffusion, in float32 on the CPU."""
    state = tensors(path)
    folder = configuration(path, state)
    if folder is None:
        return ldm_pipeline(state, str(path))
    del state
    build, options = pipeline_class(folder)
    with readable(path), bounded():
        found = build.from_single_file(str(path), config=str(folder), local_files_only=True, **options)
    return moved(found, torch.float32)


def load_folder(folder: Path, unet: Path | None = None) -> Any:
    """The pipeline of a folder, in float32 on the CPU, with the U-Net of the folder `unet` if there is one."""
    with readable(folder), bounded():
        _require_small(folder)
        (build, unchecked), index = pipeline_class(folder), read(folder / INDEX)
        if "unet" not in index:
            kind = build.__name__
            raise DeepCacheError(f"expected a pipeline with a U-Net in {folder}, got {kind} without; pass another")
        networks = {}
        for name, entry in index.items():
            if isinstance(entry, list) and len(entry) == 2 and entry[0] in _LIBRARIES:
                kind, place = _class_of(*entry), unet if unet and name == "unet" else folder / name
                if name != _UNSAFE and isinstance(kind, type) and issubclass(kind, nn.Module):
                    networks[name] = _network(place if place.is_dir() else folder, kind)
        return moved(build.from_pretrained(folder, **_OPTIONS, **unchecked, **networks), torch.float32)


def pipeline_class(folder: Path) -> tuple[Any, dict[str, Any]]:
    """The class of pipeline that a folder's index names, and the arguments that leave out its safety checker.

    A safety checker blackens samples, and the model's own samples are to be measured.
    """
    index = read(folder / INDEX)
    kind = index.get("_class_name")
    library = _LIBRARIES[-1] if kind == ClassConditionalPipeline.__name__ else "diffusers"
    found = _class_of(library, kind) if isinstance(kind, str) else None  # a list names code in the folder
    if not (isinstance(found, type) and issubclass(found, diffusers.DiffusionPipeline)):
        raise DeepCacheError(f"expected a pipeline of diffusers in {folder}, got {shown(kind)}; pass another folder")
    return found, {_UNSAFE: None, "requires_safety_checker": False} if _UNSAFE in index else {}


def _network(folder: Path, build: Any) -> Any:
    """Load a network of the class `build`; missing weights, which the libraries would fill with noise, are refused."""
    names = [path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".bin") and path.name[0] != "."]
    variant = "fp16" if names and all(".fp16." in name for name in names) else None
    found, told = build.from_pretrained(folder, output_loading_info=True, variant=variant, **_OPTIONS)
    if missing := sorted(told["missing_keys"]):
        raise DeepCacheError(
            f"expected all weights of a {build.__name__} in {folder}, got {len(missing)} missing (the first: "
            f"{missing[0]}); fetch it again"
        )
    return found


def moved(pipe: Any, dtype: torch.dtype, device: Device = "cpu") -> Any:
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
        folder.parent.mkdir(parents=True, exist_ok=True)
        pipe.save_pretrained(partial, safe_serialization=True)
        partial.replace(folder)
    except (OSError, SafetensorError) as error:
        raise DeepCacheError(f"expected to write {folder}, got: {first_line(error)}; nothing of it is left") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _require_small(folder: Path) -> None:
    """Refuse large configurations and tokenizers, which diffusers and transformers read whole, and large schedulers."""
    for path in filter(os.path.isfile, folder.rglob("*")):
        if path.suffix in _TEXTS and path.stat().st_size > MOST_BYTES:
            raise DeepCacheError(f"expected at most {MOST_BYTES:,} bytes in {path}, which has more; fetch it again")
        steps = read(path).get("num_train_timesteps") if path.name in _CONFIGS else None
        if steps is not None and (type(steps) is not int or not 1 <= steps <= _MOST_TIMESTEPS):
            raise DeepCacheError(
                f"expected num_train_timesteps in 1..{_MOST_TIMESTEPS} in {path}, got {shown(steps)}; correct it"
            )


def _class_of(library: str, kind: Any) -> Any:
    """A class of a library, or None; refuse one that diffusers replaces by a dummy because a package is missing."""
    found = getattr(import_module(library), kind, None)
    if isinstance(found, DummyObject):
        missing = [name for name in found._backends if not BACKENDS_MAPPING[name][0]()]
        raise DeepCacheError(
            f"{kind} needs {', '.join(missing)}, which is not installed; pip install {' '.join(missing)}"
        )
    return found


def usual_device() -> str:
    """The first CUDA device if there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def require_device(device: Device, *, has_values: bool = True) -> None:
    """Refuse a device that this machine does not have, and `meta` if tensors on the device must have values."""
    try:
        found = torch.zeros(1, device=device)
        if has_values:
            found.item()
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        told = f"expected a device of this machine, got {shown(str(device))}; pass cpu or cuda"
        raise DeepCacheError(told) from error
