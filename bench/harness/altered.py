"""This module alters how U-Nets are cut, or their shallow steps, at the seam that all families share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import torch

from deepcache.unets import registry
from deepcache.unets.family import CutUNet, Family, Feature

Alter = Callable[[Family, Any, int], CutUNet]  # takes a family, a U-Net and a branch, and returns the cut U-Net


class _AlteredFamily:
    """A family whose U-Nets `alter` cuts; the family answers everything else as it did."""

    def __init__(self, family: Family, alter: Alter) -> None:
        self._family, self._alter = family, alter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)

    def cut(self, unet: Any, branch: int) -> CutUNet:
        return self._alter(self._family, unet, branch)


class _AlteredCut:
    """A cut U-Net with another eager shallow step; everything else is as it was."""

    def __init__(self, cut: CutUNet, shallow: Callable[..., Any]) -> None:
        self._cut, self._shallow = cut, shallow

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cut, name)

    def shallow(self, feature: Feature, *args: Any, **kwargs: Any) -> Any:
        return self._shallow(self._cut, feature, *args, **kwargs)


def altered(alter: Alter) -> AbstractContextManager[Any]:
    """Return a context manager: within its block, `alter` cuts the U-Nets of all families."""
    return patch.object(registry, "FAMILIES", tuple(_AlteredFamily(family, alter) for family in registry.FAMILIES))


def with_shallow(shallow: Callable[..., Any]) -> AbstractContextManager[Any]:
    """Return a context manager: a U-Net that is cut within its block has another eager shallow step.

    Args:
        shallow: takes the cut U-Net as it would be, the feature, and the arguments of the U-Net's `forward`.
    """

    def alter(family: Family, unet: Any, branch: int) -> CutUNet:
        cut: Any = _AlteredCut(family.cut(unet, branch), shallow)
        return cut

    return altered(alter)


def zeroed(cut: CutUNet, feature: Feature, *args: Any, **kwargs: Any) -> Any:
    """Run a shallow step on zeros in place of the feature."""
    return cut.shallow(tuple(torch.zeros_like(part) for part in feature), *args, **kwargs)
