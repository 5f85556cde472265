"""From images to features: what every extractor gives, and mini-features, Inception's stand-in for embedded models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepcache.errors import DeepCacheError
from deepcache.models.embedded import EXTRACTOR, SIZE, MiniFeatures, load_extractor

_BLOCK = 2_000


class Images(Protocol):
    """(B, 3, H, W) in 0..1: a tensor, or what reads parts from somewhere."""

    def __len__(self) -> int: ...

    def split(self, size: int) -> Iterable[Tensor]:
        """`size` of them at a time, in order."""


@dataclass(frozen=True, eq=False)
class Features:
    """Of B images: `pooled` (B, D) and `spatial` (B, S), float32; class `probabilities` (B, K)."""

    pooled: NDArray[np.float32]
    spatial: NDArray[np.float32]
    probabilities: NDArray[np.float32]

    def first(self, count: int) -> Features:
        """Of the first images."""
        return self._part(slice(count))

    def split(self, size: int = _BLOCK) -> Iterator[Features]:
        """`size` of them at a time: whatever takes them in float64 then takes no more at once."""
        for start in range(0, len(self.pooled), size):
            yield self._part(slice(start, start + size))

    def _part(self, part: slice) -> Features:
        return Features(*(getattr(self, field.name)[part] for field in fields(self)))


class Extractor(Protocol):
    """A network under a name that a record keeps."""

    @property
    def name(self) -> str: ...

    def __call__(self, images: Tensor) -> Features:
        """Of images (B, 3, H, W) in 0..1, all at once."""


@dataclass(frozen=True, eq=False)
class MiniExtractor:
    """mini-features, on images of 32 x 32."""

    model: MiniFeatures
    name: str = EXTRACTOR

    @classmethod
    def load(cls, device: str | torch.device = "cpu") -> MiniExtractor:
        """The embedded one."""
        return cls(load_extractor().to(device))

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        size = tuple(images.shape[2:])
        if size != SIZE:
            raise DeepCacheError(
                f"expected images of 32 x 32 for {self.name}, got {size}; larger ones are for Inception"
            )
        found = self.model(images.to(self.model.device) * 2 - 1)
        return Features(*(as_array(part) for part in (found.pooled, found.spatial, found.garment.softmax(dim=1))))


def batches(extractor: Extractor, images: Images, *, batch_size: int = 250) -> Iterator[Features]:
    """Features of one batch after another: no more is in memory."""
    for part in images.split(batch_size):
        yield extractor(part)


def extract(extractor: Extractor, images: Images, *, batch_size: int = 250) -> Features:
    """Features of all images."""
    found = list(batches(extractor, images, batch_size=batch_size))
    return Features(*(np.concatenate([getattr(part, field.name) for part in found]) for field in fields(Features)))


def as_array(values: Tensor) -> Any:
    """float32, on the CPU."""
    return values.float().cpu().numpy()
