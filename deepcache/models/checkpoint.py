"""Weights out of a file that nobody vouches for: tensors are read, and code never runs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from deepcache.errors import DeepCacheError, first_line

UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError)
_CALLBACKS = ("model_checkpoint.ModelCheckpoint", "early_stopping.EarlyStopping")  # whose state a training keeps
_HOMES = ("pytorch_lightning.callbacks", "lightning.pytorch.callbacks")
_KEEP_WEIGHTS = "torch.save({'state_dict': found['state_dict']}, path)"


def weights(path: Path) -> dict[str, Tensor]:
    """The tensors by name; of a training's checkpoint those under `state_dict`.

    Args:
        path: a `.safetensors` file, or what `torch.save` wrote.

    Raises:
        DeepCacheError: no such file, a truncated one, one that carries code, or one without tensors by name.
    """
    if not path.is_file():
        raise DeepCacheError(f"expected a checkpoint in {path}, which is no file; correct the path")
    with readable(path):
        found = load_file(path) if path.suffix == ".safetensors" else _unpickled(path)
    while isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    tensors = {key: value for key, value in found.items() if isinstance(value, Tensor)} if _is_named(found) else {}
    if not tensors:
        raise DeepCacheError(f"expected tensors by name in {path}, got none; is this a model's checkpoint?")
    return tensors


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Tell in one line why a file cannot be read; within the block Lightning's callbacks are read as empty classes.

    CompVis' checkpoints come from trainings and name these classes as keys. A stand-in has no code that could run.

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
    except (SafetensorError, *UNREADABLE) as error:
        raise _unreadable(path, error) from error


def _unpickled(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _is_named(found: Any) -> bool:
    return isinstance(found, Mapping) and all(isinstance(key, str) for key in found)


def _stand_ins() -> list[Any]:
    return [
        (type(kind.split(".")[-1], (), {}), f"{home}.{kind}")  # a class without a body
        for home in _HOMES
        for kind in _CALLBACKS
    ]


def _unreadable(path: Path, error: Exception) -> DeepCacheError:
    reason = first_line(error)
    return DeepCacheError(f"expected a checkpoint in {path}, which is truncated or something else: {reason}")
