"""The kernel: a full and a shallow forward pass of a U-Net, as pure functions.

A full step runs every stage and also returns the feature of branch b, the hidden state g_{b+1} that enters up stage b.
A shallow step runs d_0..d_b and u_b..u_0 with a g_{b+1} given to it (DeepCache, Ma et al., 2024,
https://arxiv.org/abs/2312.00858, section 3).
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from deepcache.errors import UnsupportedUNetError
from deepcache.unets.diffusers.views import Cut, Feature, Gate, full_view, shallow_view

_NUM_COMMON = 3  # positional arguments: sample, timestep, context


def full_forward(unet: Any, cut: Cut, *args: Any, **kwargs: Any) -> tuple[Any, Feature]:
    """The U-Net's own forward pass, and the feature of a branch.

    Args:
        unet: of one of the `deepcache.unets.diffusers.families.FAMILIES`.
        cut: the branch, `Cut.of(unet, branch)`.
        *args, **kwargs: those of the U-Net's `forward`.

    Returns:
        What `forward` returns, bit for bit, and the feature: (B, C, H', W') with B times the frames of a video first.

    Raises:
        UnsupportedUNetError: the block at the cut has hooks or a `forward` of its own.
    """
    return run_full(*full_view(unet, cut), *args, **kwargs)


def shallow_forward(unet: Any, cut: Cut, feature: Feature, *args: Any, **kwargs: Any) -> Any:
    """The outermost `cut.branch` + 1 stages of either side around a feature from another step.

    Args:
        unet: of one of the `deepcache.unets.diffusers.families.FAMILIES`.
        cut: the branch that `feature` was taken at.
        feature: from `full_forward`; it stays as it is.
        *args, **kwargs: those of the U-Net's `forward`.

    Returns:
        What `forward` returns.

    Raises:
        UnsupportedUNetError: the block at the cut has hooks or a `forward` of its own.
    """
    args, kwargs = live_residuals(unet, cut, args, kwargs)
    return run_shallow(*shallow_view(unet, cut), feature, *args, **kwargs)


def run_full(view: Any, gate: Gate, *args: Any, **kwargs: Any) -> tuple[Any, Feature]:
    """A full step on its view."""
    output = view.forward(*args, **kwargs)
    feature, gate.entered = gate.entered, None
    return output, feature  # type: ignore[return-value]


def run_shallow(view: Any, gate: Gate, feature: Feature, *args: Any, **kwargs: Any) -> Any:
    """A shallow step on its view, with its residuals alone (`live_residuals`)."""
    gate.given = feature
    output = view.forward(*args, **kwargs)
    gate.given = gate.entered = None
    return output


def live_residuals(
    unet: Any, cut: Cut, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A shallow step's arguments: ControlNet's mid residual and T2I-Adapter's deep ones are in the feature already."""
    given = named(unet, args, kwargs)
    changed: dict[str, Any] = {}
    if given.get("mid_block_additional_residual") is not None:
        changed["mid_block_additional_residual"] = 0.0
    if (adapted := given.get("down_intrablock_additional_residuals")) is not None:
        changed["down_intrablock_additional_residuals"] = list(adapted[: cut.num_adapted])
    return replaced(unet, args, kwargs, changed)


def named(unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """A call's arguments by name."""
    return {**dict(zip(parameters(unet.__class__), args, strict=False)), **kwargs}


def replaced(
    unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any], changed: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call's arguments with some changed; each keeps its form: diffusers reads a LoRA scale from keywords alone."""
    names = parameters(unet.__class__)
    positional = tuple(changed.get(name, value) for name, value in zip(names, args, strict=False))
    return positional, {name: changed.get(name, value) for name, value in kwargs.items()}


def with_tensor_timestep(
    unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call's arguments with the timestep as a tensor: a number would be a graph's constant, and each step another."""
    timestep = named(unet, args, kwargs).get("timestep")
    if timestep is None or isinstance(timestep, Tensor):
        return args, kwargs
    if isinstance(unet, UNet2DModel):
        timestep = int(timestep)  # as its forward cuts it
    kind = torch.float64 if isinstance(timestep, float) else torch.int64
    return replaced(unet, args, kwargs, {"timestep": torch.tensor(timestep, dtype=kind)})


@cache
def parameters(kind: type[nn.Module]) -> tuple[str, ...]:
    """The names of a U-Net's positional arguments."""
    return tuple(inspect.signature(kind.forward).parameters)[1:]


def require_inputs(unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse, before anything runs, the one input that a shallow step cannot tell apart."""
    if len(args) <= _NUM_COMMON and kwargs.get("down_block_additional_residuals") is None:
        return
    given = named(unet, args, kwargs)
    old_adapter = "down_intrablock_additional_residuals" in parameters(unet.__class__) and (
        given.get("down_block_additional_residuals") is not None
        and given.get("mid_block_additional_residual") is None
        and given.get("down_intrablock_additional_residuals") is None
    )
    if old_adapter:
        raise UnsupportedUNetError(
            "T2I-Adapter residuals as down_block_additional_residuals without mid_block_additional_residual, which "
            "diffusers deprecates, cannot be cached; pass them as down_intrablock_additional_residuals"
        )
