"""diffusers' U-Nets behind the seam of `deepcache.unets.family`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers import UNetSpatioTemporalConditionModel
from torch import Tensor, nn

from deepcache.unets.calls import Call
from deepcache.unets.diffusers import forward
from deepcache.unets.diffusers.inputs import example
from deepcache.unets.diffusers.stages import CLASSES, nest
from deepcache.unets.diffusers.views import Cut, full_view, shallow_view
from deepcache.unets.family import Family, Feature


class CutDiffusersUNet:
    """The `CutUNet` of diffusers: a U-Net that is cut at one branch.

    Nothing is kept between calls, so threads may share it.

    Raises:
        UnsupportedUNetError: the type of a block is not known, or the block at the cut has hooks.
        DeepCacheError: the U-Net has no such branch.
    """

    run_full = staticmethod(forward.run_full)
    run_shallow = staticmethod(forward.run_shallow)

    def __init__(self, unet: Any, branch: int) -> None:
        self._unet, self._cut = unet, Cut.of(unet, branch)
        shallow_view(unet, self._cut)  # refuses hooks on the blocks that the branch cuts, before anything runs

    def full(self, *args: Any, **kwargs: Any) -> tuple[Any, Feature]:
        return forward.full_forward(self._unet, self._cut, *args, **kwargs)

    def shallow(self, feature: Feature, *args: Any, **kwargs: Any) -> Any:
        return forward.shallow_forward(self._unet, self._cut, feature, *args, **kwargs)

    def require_inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        forward.require_inputs(self._unet, args, kwargs)

    def full_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        args, kwargs = forward.with_tensor_timestep(self._unet, args, kwargs)
        return (*full_view(self._unet, self._cut), *args), kwargs

    def shallow_call(self, feature: Feature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        args, kwargs = forward.with_tensor_timestep(self._unet, args, kwargs)
        args, kwargs = forward.live_residuals(self._unet, self._cut, args, kwargs)
        return (*shallow_view(self._unet, self._cut), feature, *args), kwargs

    def tensors_of(self, output: Any) -> tuple[Tensor, ...]:
        return output if isinstance(output, tuple) else (output.sample,)

    def with_tensors(self, output: Any, tensors: tuple[Tensor, ...]) -> Any:
        if isinstance(output, tuple):
            return tensors
        (output.sample,) = tensors
        return output


class DiffusersFamily:
    """diffusers' six U-Net classes; a subclass of one of them may have another `forward` and is not covered."""

    classes: Mapping[str, type[nn.Module]] = {kind.__name__: kind for kind in CLASSES}
    nest = staticmethod(nest)
    example = staticmethod(example)

    def covers(self, unet: Any) -> bool:
        return type(unet) in CLASSES

    def cut(self, unet: Any, branch: int) -> CutDiffusersUNet:
        return CutDiffusersUNet(unet, branch)

    def num_frames(self, unet: Any, shape: tuple[int, ...]) -> int:
        if len(shape) == len("BCHW"):
            return 1
        return shape[1] if isinstance(unet, UNetSpatioTemporalConditionModel) else shape[2]


DIFFUSERS: Family = DiffusersFamily()
