"""Shards: files of the samples of some successive seeds, equal byte for byte where these are equal."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deepcache.errors import DeepCacheError
from deepcache.temporary import whole

Images = NDArray[np.uint8]  # (B, H, W, 3)
_NAME = re.compile(r"seeds-(\d{8,})-(\d{8,})\.npz")


@dataclass(frozen=True)
class Shard:
    """`seeds-START-STOP.npz`: `arr_0` (B, H, W, 3) uint8, as the ADM suite reads it, and `seeds` (B,) int64."""

    path: Path
    seeds: range

    @classmethod
    def of(cls, folder: Path, seeds: range) -> Shard:
        """Where the samples of these seeds go."""
        return cls(folder / f"seeds-{seeds.start:08d}-{seeds.stop:08d}.npz", seeds)

    def write(self, images: Images) -> None:
        """The samples, one a seed, through a temporary name.

        Raises:
            DeepCacheError: the disk is full, or another reason not to write.
        """
        with whole(self.path) as file:
            np.savez(file, arr_0=images, seeds=np.array(self.seeds))

    def read(self) -> Images:
        """(B, H, W, 3), in the order of the seeds.

        Raises:
            DeepCacheError: the file is not what `write` wrote.
        """
        try:
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                images, seeds = arrays["arr_0"], arrays["seeds"]
        except Exception as error:  # altered bytes make zipfile and numpy raise a dozen kinds
            raise DeepCacheError(f"{self._refusal} ({' '.join(str(error).split()) or type(error).__name__})") from error
        shape = (len(self.seeds), *images.shape[1:3], 3)
        if images.dtype != np.uint8 or images.shape != shape or seeds.tolist() != list(self.seeds):
            raise DeepCacheError(f"{self._refusal} ({images.dtype} {images.shape} of {len(seeds)} seeds)")
        return np.asarray(images, dtype=np.uint8)

    @property
    def _refusal(self) -> str:
        seeds = f"{self.seeds.start}:{self.seeds.stop}"
        return (
            f"expected the samples of seeds {seeds} in {self.path}, which is truncated or altered; "
            "delete it and sample again"
        )


def shards(folder: Path) -> list[Shard]:
    """Those in a folder, by their names, in the order of their seeds."""
    names = ((path, _NAME.fullmatch(path.name)) for path in folder.iterdir())
    found = (Shard(path, range(int(name[1]), int(name[2]))) for path, name in names if name)
    return sorted(found, key=lambda shard: (shard.seeds.start, shard.seeds.stop))


def aligned(seeds: range, size: int) -> Iterator[tuple[int, range]]:
    """The absolute numbers of the shards that the seeds fall into, each with those of the seeds that do."""
    for number in range(seeds.start // size, -(-seeds.stop // size)):
        yield number, range(max(seeds.start, number * size), min(seeds.stop, (number + 1) * size))


def blocks(seeds: list[int]) -> Iterator[range]:
    """Ascending seeds as ranges of successive ones."""
    start = 0
    for i in range(1, len(seeds) + 1):
        if i == len(seeds) or seeds[i] != seeds[i - 1] + 1:
            yield range(seeds[start], seeds[i - 1] + 1)
            start = i
