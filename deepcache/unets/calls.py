"""The arguments of one call of a U-Net: by name, with some replaced, and as shapes without data."""

from __future__ import annotations

import inspect
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, SupportsFloat

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from deepcache.errors import DeepCacheError
from deepcache.plan import require_whole

Call = tuple[tuple[Any, ...], dict[str, Any]]  # positional and keyword arguments of `forward`
TIMESTEPS = (
    "timestep",
    "timesteps",
    "timestep_ratio",
    "time",
    "t",
    "sigma",
    "sigmas",
    "noise_labels",
    "noise_level",
    "noise_cond",
)
CLIP_TOKENS = 77  # the length of the context where nothing tells it


@cache
def parameters(kind: type[nn.Module]) -> tuple[str, ...]:
    """Return the names of the arguments of a U-Net class's `forward`, in order."""
    return tuple(inspect.signature(kind.forward).parameters)[1:]


def named(unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by name."""
    return {**dict(zip(parameters(unet.__class__), args, strict=False)), **kwargs}


def fingerprint(value: Any, *, with_sizes: bool = True) -> Any:
    """Return a key of a call's arguments: their names, types, shapes and options; numbers count by type alone."""
    if isinstance(value, Tensor):
        return value.shape if with_sizes else value.ndim, value.dtype, value.device
    if isinstance(value, dict):
        return tuple((key, fingerprint(inner, with_sizes=with_sizes)) for key, inner in value.items())
    if isinstance(value, (tuple, list)):
        return tuple(fingerprint(inner, with_sizes=with_sizes) for inner in value)
    if is_dataclass(value) and not isinstance(value, type):
        inner = {each.name: getattr(value, each.name) for each in fields(value)}
        return type(value), fingerprint(inner, with_sizes=with_sizes)
    return value if isinstance(value, (bool, str, Enum)) else type(value)


def timestep_of(unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the timestep of a call: the argument of one of `TIMESTEPS`' names, else the second one; None for neither.

    A timestep is a number, or a tensor of one value or of one for each sample; an embedding is not.
    """
    given = named(unet, args, kwargs)
    found = next((given[name] for name in TIMESTEPS if name in given), None)
    if found is None and len(args) > 1:
        found = args[1]
    if isinstance(found, Tensor):
        return found if 0 < found.numel() <= max((1, *found.shape[:1])) else None  # else an embedding
    return found if isinstance(found, SupportsFloat) else None


def replaced(unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any], changed: dict[str, Any]) -> Call:
    """Return a call with some arguments replaced, positional or keyword as before: a LoRA scale has to be a keyword."""
    names = parameters(unet.__class__)
    positional = tuple(changed.get(name, value) for name, value in zip(names, args, strict=False))
    return positional, {name: changed.get(name, value) for name, value in kwargs.items()}


def one_sample(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Return a call's arguments cut to one sample (to all frames of one video), as shapes without data."""
    batch = len(sample_of(args, kwargs))

    def meta(value: Tensor) -> Tensor:
        return shape_of(value[: max(len(value) // batch, 1)] if value.ndim else value)

    return pytree.tree_map_only(Tensor, meta, (args, kwargs))  # type: ignore[no-any-return]


def sample_of(args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor | None = None) -> Tensor:
    """Return the sample among the arguments of a call, the tensor that is denoised.

    Candidates are the tensors of floats with two dimensions or more; without any, all tensors with a batch. Where the
    output is known, the first candidate of its shape is taken; else one of its sizes after the channels; else one of
    its number of dimensions. Otherwise the first candidate is taken.

    Raises:
        DeepCacheError: no argument can be the sample.
    """
    given = [each for each in pytree.tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    floats = [tensor for tensor in given if tensor.ndim > 1 and tensor.is_floating_point()]
    floats = floats or [tensor for tensor in given if tensor.ndim]
    if not floats:
        raise DeepCacheError("expected the arguments of a U-Net call, with a sample, a tensor (B, ...)")
    if output is None:
        return floats[0]

    def likeness(tensor: Tensor) -> tuple[bool, bool, bool]:
        is_as_deep = tensor.ndim == output.ndim
        return tensor.shape == output.shape, is_as_deep and tensor.shape[2:] == output.shape[2:], is_as_deep

    return max(floats, key=likeness)  # the first of the best


def shape_of(value: Tensor) -> Tensor:
    """Return a tensor of the same shape on the meta device; floating point becomes float32."""
    return torch.empty_like(value, device="meta", dtype=torch.float32 if value.is_floating_point() else value.dtype)


def sides(size: Any) -> tuple[int, int]:
    """Return height and width of a configuration's `sample_size`, which is one whole number or two, of at least 1."""
    if size is None:
        raise DeepCacheError("this U-Net's configuration has no sample_size; pass height and width, or add it there")
    height, width = size if isinstance(size, (list, tuple)) and len(size) == 2 else (size, size)
    return require_whole("height", height, at_least=1), require_whole("width", width, at_least=1)
