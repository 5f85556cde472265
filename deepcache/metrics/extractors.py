"""From images to features: mini-features, in the place of Inception for the embedded models."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepcache.models.mini_features import MiniFeatures


@dataclass(frozen=True, eq=False)
class Features:
    """Of B images: `pooled` (B, D) and `spatial` (B, S), float32; class `probabilities` (B, K)."""

    pooled: NDArray[np.float32]
    spatial: NDArray[np.float32]
    probabilities: NDArray[np.float32]

    def first(self, count: int) -> Features:
        """Of the first images."""
        return Features(*(getattr(self, field.name)[:count] for field in fields(self)))


@torch.no_grad()
def extract(model: MiniFeatures, images: Tensor, *, batch_size: int = 250) -> Features:
    """Features of images (B, 3, 32, 32) in 0..1."""
    found = [model(part * 2 - 1) for part in images.split(batch_size)]
    pooled, spatial, garment = (
        torch.cat([getattr(f, name) for f in found]) for name in ("pooled", "spatial", "garment")
    )
    return Features(pooled.numpy(), spatial.numpy(), garment.softmax(dim=1).numpy())
