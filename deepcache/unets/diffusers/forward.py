"""The full and the shallow forward pass of a U-Net of diffusers.

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
    """Return what a U-Net's `forward` returns, bit for bit, and the feature: (B, C, H', W'), B with all frames."""
    return run_full(*full_view(unet, cut), *args, **kwargs)


def shallow_forward(unet: Any, cut: Cut, feature: Feature, *args: Any, **kwargs: Any) -> Any:
    """Run the outermost stages of either side around a feature of `full_forward` at the same cut."""
    args, kwargs = _live_residuals(unet, cut, args, kwargs)
    return run_shallow(*shallow_view(unet, cut), feature, *args, **kwargs)


def run_full(view: Any, gate: Gate, *args: Any, **kwargs: Any) -> tuple[Any, Feature]:
    """Run a full step on its view."""
    output = view.forward(*args, **kwargs)
    feature, gate.entered = gate.entered, None
    return output, feature  # type: ignore[return-value]


def run_shallow(view: Any, gate: Gate, feature: Feature, *args: Any, **kwargs: Any) -> Any:
    """Run a shallow step on its view; the arguments come from `_live_residuals`."""
    gate.given = feature
    output = view.forward(*args, **kwargs)
    gate.given = gate.entered = None
    return output


class CutDiffusersUNet:
    """The `CutUNet` of diffusers. It keeps nothing between calls, so threads may share it."""

    run_full = staticmethod(run_full)
    run_shallow = staticmethod(run_shallow)

    def __init__(self, unet: Any, branch: int) -> None:
        self._unet, self._cut = unet, Cut.of(unet, branch)
        shallow_view(unet, self._cut)  # refuses hooks on the blocks that the branch cuts, before anything runs

    def full(self, *args: Any, **kwargs: Any) -> tuple[Any, Feature]:
        return full_forward(self._unet, self._cut, *args, **kwargs)

    def shallow(self, feature: Feature, *args: Any, **kwargs: Any) -> Any:
        return shallow_forward(self._unet, self._cut, feature, *args, **kwargs)

    def full_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        args, kwargs = _with_tensor_timestep(self._unet, args, kwargs)
        return (*full_view(self._unet, self._cut), *args), kwargs

    def shallow_call(self, feature: Feature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        args, kwargs = _with_tensor_timestep(self._unet, args, kwargs)
        args, kwargs = _live_residuals(self._unet, self._cut, args, kwargs)
        return (*shallow_view(self._unet, self._cut), feature, *args), kwargs

    def tensors_of(self, output: Any) -> tuple[Tensor, ...]:
        return output if isinstance(output, tuple) else (output.sample,)

    def with_tensors(self, output: Any, tensors: tuple[Tensor, ...]) -> Any:
        if isinstance(output, tuple):
            return tensors
        (output.sample,) = tensors
        return output

    def require_inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse residuals that may be ControlNet's or a T2I-Adapter's, which a shallow step cannot tell apart."""
        if len(args) <= _NUM_COMMON and kwargs.get("down_block_additional_residuals") is None:
            return
        given = named(self._unet, args, kwargs)
        if "down_intrablock_additional_residuals" in parameters(self._unet.__class__) and (
            given.get("down_block_additional_residuals") is not None
            and given.get("mid_block_additional_residual") is None
            and given.get("down_intrablock_additional_residuals") is None
        ):
            raise UnsupportedUNetError(
                "T2I-Adapter residuals as down_block_additional_residuals without mid_block_additional_residual, which "
                "diffusers deprecates, cannot be cached; pass them as down_intrablock_additional_residuals"
            )


def _live_residuals(unet: Any, cut: Cut, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Return a call without the residuals that the feature has: ControlNet's mid one, and a T2I-Adapter's deep ones."""
    given = named(unet, args, kwargs)
    changed: dict[str, Any] = {}
    if given.get("mid_block_additional_residual") is not None:
        changed["mid_block_additional_residual"] = 0.0
    if (adapted := given.get("down_intrablock_additional_residuals")) is not None:
        changed["down_intrablock_additional_residuals"] = list(adapted[: cut.num_adapted])
    return replaced(unet, args, kwargs, changed) if changed else (args, kwargs)


def _with_tensor_timestep(unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Return a call with its timestep as a tensor; a number would give each step a compiled graph of its own."""
    timestep = named(unet, args, kwargs).get("timestep")
    if timestep is None or isinstance(timestep, Tensor):
        return args, kwargs
    if isinstance(unet, UNet2DModel):
        timestep = int(timestep)  # its forward cuts off the fraction
    kind = torch.float64 if isinstance(timestep, float) else torch.int64
    return replaced(unet, args, kwargs, {"timestep": torch.tensor(timestep, dtype=kind)})
