"""The family of diffusers' U-Nets: six classes whose `forward` goes down and up through blocks of known types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers import UNetSpatioTemporalConditionModel
from torch import nn

from deepcache.errors import UnsupportedUNetError
from deepcache.unets.diffusers.forward import CutDiffusersUNet
from deepcache.unets.diffusers.inputs import example
from deepcache.unets.diffusers.stages import CLASSES, nest
from deepcache.unets.family import Family


class DiffusersFamily:
    """diffusers' six U-Net classes, of blocks that are known.

    A subclass of one of them may have another `forward` and is not covered, and neither is one of other blocks.
    """

    classes: Mapping[str, type[nn.Module]] = {kind.__name__: kind for kind in CLASSES}
    nest = staticmethod(nest)
    example = staticmethod(example)
    cut = staticmethod(CutDiffusersUNet)

    def covers(self, unet: Any) -> bool:
        if type(unet) not in CLASSES:
            return False
        try:
            nest(unet)
        except UnsupportedUNetError:
            return False
        return True

    def num_frames(self, unet: Any, shape: tuple[int, ...]) -> int:
        if len(shape) == len("BCHW"):
            return 1
        return shape[1] if isinstance(unet, UNetSpatioTemporalConditionModel) else shape[2]


DIFFUSERS: Family = DiffusersFamily()
