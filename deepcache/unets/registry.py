"""The families of U-Nets that the library can cut; a new family is one line here."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from deepcache.errors import UnsupportedUNetError
from deepcache.plan import IDLE
from deepcache.unets.calls import Call
from deepcache.unets.diffusers import DIFFUSERS
from deepcache.unets.family import CutUNet, Family, Nest, Stage
from deepcache.unets.output import WholeNetwork
from deepcache.unets.watched import WATCHED

FAMILIES: tuple[Family, ...] = (DIFFUSERS, WATCHED)  # the first one that covers a U-Net cuts it


def classes() -> dict[str, type[nn.Module]]:
    """Return the U-Net classes of all families by name."""
    return {name: kind for family in FAMILIES for name, kind in family.classes.items()}


def family_of(unet: Any) -> Family:
    """Return the family that cuts a U-Net, or raise an `UnsupportedUNetError` for any other object."""
    for family in FAMILIES:
        if family.covers(unet):
            return family
    raise UnsupportedUNetError(f"expected a U-Net, a torch.nn.Module, got a {type(unet).__name__}")


def nest_of(network: Any, call: Call | None = None) -> Nest[Stage]:
    """Return the stages of a U-Net, and none of a network that no family cuts, or whose blocks are not known."""
    try:
        return family_of(network).nest(network, call)
    except UnsupportedUNetError:
        return Nest((), Stage("no stage", ()), ())


def cut(unet: Any, branch: int) -> CutUNet:
    """Cut a U-Net at a branch, as `Family.cut` does, and any network at branch -1."""
    if isinstance(unet, torch.jit.ScriptModule):
        raise UnsupportedUNetError(
            f"expected a U-Net of Python code, got a {type(unet).__name__}; cache the module that it was made from"
        )
    return WholeNetwork(unet) if branch == IDLE else family_of(unet).cut(unet, branch)
