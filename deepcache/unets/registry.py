"""The families of U-Nets that the library can cut; a new family is one line here."""

from __future__ import annotations

from typing import Any

from torch import nn

from deepcache.errors import UnsupportedUNetError
from deepcache.unets.diffusers import DIFFUSERS
from deepcache.unets.family import CutUNet, Family

FAMILIES: tuple[Family, ...] = (DIFFUSERS,)


def classes() -> dict[str, type[nn.Module]]:
    """Return the U-Net classes of all families by name."""
    return {name: kind for family in FAMILIES for name, kind in family.classes.items()}


def family_of(unet: Any) -> Family:
    """Return the family that cuts a U-Net, or raise an `UnsupportedUNetError` that names the classes that can be."""
    for family in FAMILIES:
        if family.covers(unet):
            return family
    raise UnsupportedUNetError(f"expected a diffusers U-Net ({', '.join(classes())}), got a {type(unet).__name__}")


def cut(unet: Any, branch: int) -> CutUNet:
    """Cut a U-Net at a branch, as `Family.cut` does."""
    return family_of(unet).cut(unet, branch)
