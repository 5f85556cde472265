"""U-Net families: how each embeds its inputs and ends, one file a family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from diffusers import UNet2DConditionModel, UNet2DModel
from torch import Tensor, nn

from deepcache.errors import UnsupportedUNetError
from deepcache.stages import Nest, nest
from deepcache.unets import unet_2d, unet_2d_condition
from deepcache.unets.inputs import Inputs

__all__ = ["FAMILIES", "Inputs", "StagedUNet"]


@dataclass(frozen=True)
class Family:
    """`embed(unet, *args, **kwargs)` takes what the U-Net's own `forward` takes; `head` makes its output."""

    embed: Callable[..., Inputs]
    head: Callable[[nn.Module, Tensor, Inputs], Any]


FAMILIES: dict[type[nn.Module], Family] = {
    UNet2DModel: Family(unet_2d.embed, unet_2d.head),
    UNet2DConditionModel: Family(unet_2d_condition.embed, unet_2d_condition.head),
}


class StagedUNet:
    """A diffusers U-Net seen as a family and a nest of stages; shares the U-Net's modules.

    Raises:
        UnsupportedUNetError: no family of this type, or a block type that is not known.
    """

    def __init__(self, unet: nn.Module) -> None:
        if type(unet) not in FAMILIES:
            names = ", ".join(kind.__name__ for kind in FAMILIES)
            raise UnsupportedUNetError(f"expected a diffusers U-Net ({names}), got a {type(unet).__name__}")
        self.unet = unet
        self.family = FAMILIES[type(unet)]
        self.nest: Nest = nest(unet)
