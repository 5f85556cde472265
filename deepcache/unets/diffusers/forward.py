"""The full and the shallow forward pass of a U-Net of diffusers, as functions without state.

A full step runs every stage and also returns the feature of branch b, the hidden state g_{b+1} that enters up stage b.
A shallow step runs d_0..d_b and u_b..u_0 with a g_{b+1} that it is given (DeepCache, Ma et al., 2024,
https://arxiv.org/abs/2312.00858, section 3).
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor

from deepcache.errors import UnsupportedUNetError
from deepcache.unets.calls import Call, named, parameters, replaced
from deepcache.unets.diffusers.views import Cut, Gate, full_view, shallow_view
from deepcache.unets.family import Feature

_NUM_COMMON = 3  # positional arguments that every class has: sample, timestep, context


def full_forward(unet: Any, cut: Cut, *args: Any, **kwargs: Any) -> tuple[Any, Feature]:
    """Run a U-Net's own forward pass, and take the feature of a branch.

    Args:
        unet: a U-Net of one of the classes `deepcache.unets.diffusers.stages.CLASSES`.
        cut: `Cut.of(unet, branch)`.
        *args, **kwargs: the arguments of the U-Net's `forward`.

    Returns:
        What `forward` returns, bit for bit, and the feature: (B, C, H', W'), where B counts every frame of a video.

    Raises:
        UnsupportedUNetError: the block at the cut has hooks or a `forward` of its own.
    """
    return run_full(*full_view(unet, cut), *args, **kwargs)


def shallow_forward(unet: Any, cut: Cut, feature: Feature, *args: Any, **kwargs: Any) -> Any:
    """Run the outermost `cut.branch` + 1 stages of either side around a feature from another step.

    Args:
        unet: a U-Net of one of the classes `deepcache.unets.diffusers.stages.CLASSES`.
        cut: the cut at which `feature` was taken.
        feature: a feature of `full_forward`; this function does not change it.
        *args, **kwargs: the arguments of the U-Net's `forward`.

    Returns:
        What `forward` returns.

    Raises:
        UnsupportedUNetError: the block at the cut has hooks or a `forward` of its own.
    """
    args, kwargs = live_residuals(unet, cut, args, kwargs)
    return run_shallow(*shallow_view(unet, cut), feature, *args, **kwargs)


def run_full(view: Any, gate: Gate, *args: Any, **kwargs: Any) -> tuple[Any, Feature]:
    """Run a full step on its view."""
    output = view.forward(*args, **kwargs)
    feature, gate.entered = gate.entered, None
    return output, feature  # type: ignore[return-value]


def run_shallow(view: Any, gate: Gate, feature: Feature, *args: Any, **kwargs: Any) -> Any:
    """Run a shallow step on its view; the arguments come from `live_residuals`."""
    gate.given = feature
    output = view.forward(*args, **kwargs)
    gate.given = gate.entered = None
    return output


def live_residuals(unet: Any, cut: Cut, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Return the arguments of a shallow step, without the residuals that the feature has already.

    These are ControlNet's mid residual and the residuals of a T2I-Adapter for the deep blocks.
    """
    given = named(unet, args, kwargs)
    changed: dict[str, Any] = {}
    if given.get("mid_block_additional_residual") is not None:
        changed["mid_block_additional_residual"] = 0.0
    if (adapted := given.get("down_intrablock_additional_residuals")) is not None:
        changed["down_intrablock_additional_residuals"] = list(adapted[: cut.num_adapted])
    return replaced(unet, args, kwargs, changed) if changed else (args, kwargs)


def with_tensor_timestep(unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Return the arguments of a call with the timestep as a tensor.

    A number would be a constant of the compiled graph, so that each step would get a graph of its own.
    """
    timestep = named(unet, args, kwargs).get("timestep")
    if timestep is None or isinstance(timestep, Tensor):
        return args, kwargs
    if isinstance(unet, UNet2DModel):
        timestep = int(timestep)  # its forward cuts off the fraction
    kind = torch.float64 if isinstance(timestep, float) else torch.int64
    return replaced(unet, args, kwargs, {"timestep": torch.tensor(timestep, dtype=kind)})


def require_inputs(unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse, before anything runs, the one input that a shallow step cannot tell apart.

    Raises:
        UnsupportedUNetError: the residuals may be ControlNet's or those of a T2I-Adapter.
    """
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
