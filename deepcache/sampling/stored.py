"""A store's samples as images, read a part at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from deepcache.sampling.store import Store


@dataclass(frozen=True)
class StoredImages:
    """(B, 3, H, W) in 0..1 of some seeds, as far as a tensor's `len`, `split` and beginning go."""

    store: Store
    seeds: Sequence[int]

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, part: slice) -> StoredImages:
        return StoredImages(self.store, self.seeds[part])

    def split(self, size: int) -> Iterator[Tensor]:
        """`size` of them at a time.

        Raises:
            DeepCacheError: samples are missing, or a file is broken.
        """
        for start in range(0, len(self.seeds), size):
            yield self.store.images(self.seeds[start : start + size]).float() / 255
