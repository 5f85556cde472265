"""Weights out of a file that nobody vouches for: tensors are read, and code never runs."""

from __future__ import annotations

import mmap
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from deepcache.errors import DeepCacheError, first_line, shown

_MOST_OF_PICKLE = 64 << 20  # bytes; the names and shapes of SDXL's weights take 1 MB
MOST_WRAPPINGS = 8  # levels of `state_dict` within `state_dict`
_CALLBACKS = ("model_checkpoint.ModelCheckpoint", "early_stopping.EarlyStopping")  # a training keeps their state
_HOMES = ("pytorch_lightning.callbacks", "lightning.pytorch.callbacks")
_KEEP_WEIGHTS = "torch.save({'state_dict': found['state_dict']}, path)"


def weights(path: Path) -> dict[str, Tensor]:
    """The tensors in a file by name; in a training's checkpoint, the tensors under `state_dict`.

    Args:
        path: a `.safetensors` file, or a file that `torch.save` wrote.

    Raises:
        DeepCacheError: there is no such file; or the file is truncated, carries code, would take more memory than its
            size, contains itself, or has no tensors by name.
    """
    found = contents(path)
    for _ in range(MOST_WRAPPINGS):
        if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
            found = found["state_dict"]
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        raise DeepCacheError(
            f"expected weights in {path}, got `state_dict` more than {MOST_WRAPPINGS} times within itself; "
            f"keep its weights alone: {_KEEP_WEIGHTS}"
        )
    tensors = {key: value for key, value in found.items() if isinstance(value, Tensor)} if _is_named(found) else {}
    if not tensors:
        raise DeepCacheError(f"expected tensors by name in {path}, got none; is this a model's checkpoint?")
    for name, tensor in tensors.items():
        if not _is_whole(tensor):
            raise DeepCacheError(
                f"expected plain tensors in {path}, got {shown(name)}, which has not all of its values"
            )
    return tensors


def contents(path: Path) -> Any:
    """The contents of a `.safetensors` file or a file of `torch.save`, of any structure; no code in the file runs.

    Raises:
        DeepCacheError: there is no such file; or the file is truncated, carries code, or would take more memory than
            its size.
    """
    if not os.path.isfile(path):  # unlike Path.is_file, this also takes a name that is too long
        raise DeepCacheError(f"expected a checkpoint in {path}, which is no file; correct the path")
    with readable(path):
        return load_file(path) if path.suffix.lower() == ".safetensors" else _unpickled(path)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Within the block, any error while a file is read becomes an error of one line.

    Lightning's callbacks are read as empty classes: CompVis' checkpoints come from trainings and name these classes as
    keys, and a class without a body has no code that could run.

    Raises:
        DeepCacheError: the file carries code, is truncated, or is something else.
    """
    try:
        with torch.serialization.safe_globals(_stand_ins()):
            yield
    except UnpicklingError as error:
        if named := re.search(r"GLOBAL (\S+)", str(error)):
            raise DeepCacheError(
                f"expected weights alone in {path}, got code ({named[1]}), of which nothing ran; "
                f"where you trust the file, load it and keep its weights: {_KEEP_WEIGHTS}"
            ) from error
        raise _unreadable(path, error) from error
    except DeepCacheError:
        raise
    except Exception as error:  # for altered bytes, torch, safetensors and the libraries raise a dozen kinds
        raise _unreadable(path, error) from error


def _unpickled(path: Path) -> Any:
    """Read a file of `torch.save`, and refuse a file that would take more memory than it has bytes."""
    if b"\nbytearray\n" in _pickle_of(path):  # torch allocates as many bytes as the pickle asks for
        raise ValueError(f"it has a bytearray, which is no weight; keep its weights alone: {_KEEP_WEIGHTS}")
    if zipfile.is_zipfile(path):
        return torch.load(path, map_location="cpu", weights_only=True)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        buffer: Any = content  # from a file, torch would first reserve as many bytes as a damaged pickle asks for
        return torch.load(buffer, map_location="cpu", weights_only=True)


def _pickle_of(path: Path) -> bytes:
    """The bytes that hold the names and shapes of a file's tensors; an old file, which is no zip, begins with them."""
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as file:
            return file.read(_MOST_OF_PICKLE)
    with zipfile.ZipFile(path) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise ValueError("its members are compressed, which torch.save never does")
        pickled = [member for member in archive.infolist() if member.filename.endswith("data.pkl")]
        if sum(member.file_size for member in pickled) > _MOST_OF_PICKLE:
            raise ValueError(f"its names and shapes take more than {_MOST_OF_PICKLE:,} bytes")
        return b"".join(archive.read(member) for member in pickled)


def _is_whole(tensor: Tensor) -> bool:
    """Whether the file holds every value of a tensor: a sparse or an expanded tensor stores fewer."""
    is_plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    return is_plain and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _is_named(found: Any) -> bool:
    return isinstance(found, Mapping) and all(isinstance(key, str) for key in found)


def _stand_ins() -> list[Any]:
    """Empty classes, each with the name of one of Lightning's callbacks."""
    return [(type(kind.split(".")[-1], (), {}), f"{home}.{kind}") for home in _HOMES for kind in _CALLBACKS]


def _unreadable(path: Path, error: Exception) -> DeepCacheError:
    reason = first_line(error)
    return DeepCacheError(f"expected a checkpoint in {path}, which is truncated or something else: {reason}")
