"""Weights and configurations out of files that nobody vouches for: code never runs, and sizes are bounded."""

from __future__ import annotations

import mmap
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from itertools import count
from pathlib import Path
from pickle import UnpicklingError
from threading import get_ident
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from deepcache.errors import DeepCacheError, first_line, on_one_line, shown
from deepcache.files import read_json, refused

MOST_MODULES = 10_000  # layers and groups of layers that are built at once; SDXL's U-Net has 1,929
MOST_WRAPPINGS = 8  # levels of `state_dict` within `state_dict`
_MOST_OF_CONFIG = 1 << 20  # bytes; configurations have some KiB
_MOST_OF_PICKLE = 64 << 20  # bytes; the names and shapes of SDXL's weights take 1 MB
_KEEP_WEIGHTS = "torch.save({'state_dict': found['state_dict']}, path)"
# CompVis' checkpoints come from trainings and name Lightning's callbacks as keys; a class without a body runs no code
_STAND_INS: list[Any] = [
    (type(kind, (), {}), f"{home}.{module}.{kind}")
    for home in ("pytorch_lightning.callbacks", "lightning.pytorch.callbacks")
    for module, kind in (("model_checkpoint", "ModelCheckpoint"), ("early_stopping", "EarlyStopping"))
]


def weights(path: Path) -> dict[str, Tensor]:
    """The tensors by name that `contents` finds in a file; in a training's checkpoint, those under `state_dict`.

    There is a `DeepCacheError` as for `contents`, and if the file contains itself or has no tensors by name.
    """
    found = contents(path)
    for _ in range(MOST_WRAPPINGS + 1):
        if not isinstance(found, Mapping) or not isinstance(found.get("state_dict"), Mapping):
            break
        found = found["state_dict"]
    else:
        raise DeepCacheError(
            f"expected weights in {path}, got `state_dict` more than {MOST_WRAPPINGS} times within itself; "
            f"keep its weights alone: {_KEEP_WEIGHTS}"
        )
    is_named = isinstance(found, Mapping) and all(isinstance(key, str) for key in found)
    tensors = {key: value for key, value in found.items() if isinstance(value, Tensor)} if is_named else {}
    if not tensors:
        raise DeepCacheError(f"expected tensors by name in {path}, got none; is this a model's checkpoint?")
    for name, tensor in tensors.items():  # a sparse or an expanded tensor stores fewer values than it has
        is_plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not is_plain or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise DeepCacheError(f"expected plain tensors in {path}, got {shown(name)} without all of its values")
    return tensors


def contents(path: Path) -> Any:
    """The contents of a `.safetensors` file or a file of `torch.save`, of any structure; no code in the file runs.

    There is a `DeepCacheError` if the file is missing or truncated, carries code, or would take more memory than bytes.
    """
    if not os.path.isfile(path):  # unlike Path.is_file, this also takes a name that is too long
        raise DeepCacheError(f"expected a checkpoint in {path}, which is no file; correct the path")
    with readable(path):
        return load_file(path) if path.suffix.lower() == ".safetensors" else _unpickled(path)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Within the block, any error while a file is read becomes a `DeepCacheError` that names the file."""
    try:
        with torch.serialization.safe_globals(_STAND_INS):
            yield
    except DeepCacheError:
        raise
    except Exception as error:  # for altered bytes, torch, safetensors and the libraries raise a dozen kinds
        if isinstance(error, UnpicklingError) and (named := re.search(r"GLOBAL (\S+)", str(error))):
            raise DeepCacheError(
                f"expected weights alone in {path}, got code ({named[1]}), of which nothing ran; "
                f"where you trust the file, load it and keep its weights: {_KEEP_WEIGHTS}"
            ) from error
        raise DeepCacheError(
            f"expected a checkpoint in {path}, which is truncated or something else: {first_line(error)}"
        ) from error


def _unpickled(path: Path) -> Any:
    """Read a file of `torch.save`, and refuse a file that would take more memory than it has bytes."""
    is_zip, pickled = zipfile.is_zipfile(path), b""
    if is_zip:
        with zipfile.ZipFile(path) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("its members are compressed, which torch.save never does")
            members = [member for member in archive.infolist() if member.filename.endswith("data.pkl")]
            if sum(member.file_size for member in members) > _MOST_OF_PICKLE:
                raise ValueError(f"its names and shapes take more than {_MOST_OF_PICKLE:,} bytes")
            pickled = b"".join(map(archive.read, members))
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if b"\nbytearray\n" in (pickled or content[:_MOST_OF_PICKLE]):  # torch allocates as many as the pickle asks for
            raise ValueError(f"it has a bytearray, which is no weight; keep its weights alone: {_KEEP_WEIGHTS}")
        # from an old file, which is no zip, torch would first reserve as many bytes as a damaged pickle asks for
        source: Any = path if is_zip else content
        return torch.load(source, map_location="cpu", weights_only=True)


def read(path: Path) -> dict[str, Any]:
    """The values of a configuration file; a `DeepCacheError` if it cannot be read or does not hold an object."""
    found = read_json(path, "a diffusers configuration", most_bytes=_MOST_OF_CONFIG)
    if not isinstance(found, dict):
        raise refused(path, "a diffusers configuration", f"which is a {type(found).__name__}; pass another file")
    return found


@contextmanager
def bounded() -> Iterator[None]:
    """Within the block, this thread builds no network of more than `MOST_MODULES` layers and groups of layers.

    Layers are counted as they are made, since a configuration of a few bytes may ask for millions of them, by names
    that differ from class to class.
    """
    thread, numbers = get_ident(), count(1)

    def refuse(*_: object) -> None:
        if get_ident() == thread and next(numbers) > MOST_MODULES:
            raise DeepCacheError(
                f"expected a configuration of at most {MOST_MODULES:,} layers, got one of more; "
                "correct the numbers of its layers and blocks"
            )

    handle = register_module_module_registration_hook(refuse)
    try:
        yield
    finally:
        handle.remove()


def on_meta(library: str, kind: str, config: Mapping[str, Any]) -> Any:
    """A network on the meta device, which has shapes and no memory; a `DeepCacheError` if it cannot be built."""
    try:
        build = getattr(import_module(library), kind)
        if not issubclass(build, nn.Module):
            raise TypeError(f"{kind} is no network")
        with torch.device("meta"), bounded():
            is_text = library == "transformers"
            found = build(build.config_class(**config)) if is_text else build.from_config(config)
    except DeepCacheError:
        raise
    except Exception as error:  # a wrong configuration makes the libraries raise a dozen kinds
        raise DeepCacheError(f"expected to build a {on_one_line(kind)} of {library}: {first_line(error)}") from error
    return found.eval()
