"""What the metrics on pictures take: (B, 3, H, W) in 0..1, checked before anything is measured."""

from __future__ import annotations

import torch
from torch import Tensor

from deepcache.errors import DeepCacheError


def checked(images: Tensor, *, at_least: int = 1) -> Tensor:
    """The images themselves.

    Args:
        images: (B, 3, H, W), floating point, in 0..1.
        at_least: the least B.

    Raises:
        DeepCacheError: another shape or type, fewer images, or a value outside of 0..1 (NaN included).
    """
    if images.ndim != 4 or images.shape[1] != 3 or len(images) < at_least or not images.is_floating_point():
        raise DeepCacheError(
            f"expected floating-point images (B, 3, H, W) with B at least {at_least}, "
            f"got shape {tuple(images.shape)} of {images.dtype}"
        )
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):
        raise DeepCacheError(
            f"expected images in 0..1, got values in {low:.3g}..{high:.3g}; turn x in -1..1 into (x + 1) / 2"
        )
    return images


def as_bytes(images: Tensor) -> Tensor:
    """Images in 0..1 as uint8, rounded as pictures are saved; those of a store come back as they were."""
    return (checked(images) * 255).round().to(torch.uint8)
