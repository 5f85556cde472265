"""A store's samples as images, read a part at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deepcache.errors import DeepCacheError
from deepcache.sampling.store import Store


@dataclass(frozen=True)
class StoredImages:
    """(B, 3, H, W) in 0..1 of some ascending seeds, as far as a tensor's `len`, `split` and slices go."""

    store: Store
    seeds: Sequence[int]

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, part: slice) -> StoredImages:
        return StoredImages(self.store, self.seeds[part])

    def split(self, size: int) -> Iterator[Tensor]:
        """`size` of them at a time; every file is read once.

        Raises:
            DeepCacheError: the seeds do not ascend, samples are missing, or a file is broken or of another store.
        """
        if list(self.seeds) != sorted(self.seeds):
            raise DeepCacheError("expected ascending seeds, in whose order the files of a store are read; sort them")
        rest = torch.empty(0, 3, *self.store.manifest.image_size, dtype=torch.uint8)
        for images in self.store.batches(size, self.seeds):
            rest = torch.cat([rest, images])
            while len(rest) >= size:
                yield rest[:size].float() / 255
                rest = rest[size:]
        if len(rest):
            yield rest.float() / 255
