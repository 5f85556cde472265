"""A store: a folder of samples, filled by any number of processes, read in the order of the seeds."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deepcache.errors import DeepCacheError
from deepcache.sampling.manifest import FILE, Manifest, join, read
from deepcache.sampling.shards import Images, Shard, aligned, blocks, shards
from deepcache.sampling.workers import Worker
from deepcache.temporary import clean

Make = Callable[[range], Images]  # successive seeds to their samples, (B, H, W, 3) uint8


@dataclass(frozen=True)
class Store:
    """Samples in a folder: `manifest.json`, and shards (`Shard`) that begin at multiples of its `shard_size`."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path | str) -> Store:
        """To read, finished or not.

        Raises:
            DeepCacheError: there is no store.
        """
        return cls(Path(folder), read(Path(folder)))

    @classmethod
    def create(cls, folder: Path | str, manifest: Manifest) -> Store:
        """To fill, begun or not; what killed processes left there is removed.

        Raises:
            DeepCacheError: a store of other samples is there, or the folder cannot be written.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DeepCacheError(f"expected a folder to write to, got {folder} ({error.strerror})") from error
        clean(folder)
        return cls(folder, join(folder, manifest))

    @classmethod
    def below(cls, parent: Path | str, manifest: Manifest) -> Store:
        """The store of a manifest among the folders of `parent`, whatever its name, or `parent` itself; else a new one.

        Raises:
            DeepCacheError: the folder cannot be written.
        """
        parent = Path(parent)
        for path in sorted([*parent.glob(FILE), *parent.glob(f"*/{FILE}")]):
            try:
                manifest.require(read(path.parent), path.parent)
            except DeepCacheError:  # another's, or none
                continue
            return cls.create(path.parent, manifest)
        return cls.create(parent / manifest.name, manifest)

    def seeds(self) -> list[int]:
        """Whose samples are there, ascending."""
        return sorted({seed for shard in shards(self.folder) for seed in shard.seeds})

    def missing(self, seeds: Iterable[int]) -> list[int]:
        """Those of the seeds whose samples are not there."""
        there = set(self.seeds())
        return [seed for seed in seeds if seed not in there]

    def is_complete(self, seeds: Iterable[int]) -> bool:
        return not self.missing(seeds)

    def work(self, seeds: range, worker: Worker) -> Iterator[range]:
        """What is missing of a worker's part of the seeds, each of one shard, as things stand when it is its turn."""
        for number, wanted in aligned(seeds, self.manifest.shard_size):
            if worker.owns(number):
                yield from blocks(self.missing(wanted))

    def fill(self, seeds: range, make: Make, worker: Worker | None = None) -> None:
        """Sample what is missing of a worker's part of the seeds, a shard at a time.

        Args:
            seeds: of all workers.
            make: samples successive seeds of one shard: equal files come from any number of workers if what it
                makes depends on these alone.
            worker: which of several this is; alone if not given.

        Raises:
            DeepCacheError: samples of another size than the manifest's, or they cannot be written.
        """
        for block in self.work(seeds, worker or Worker()):
            Shard.of(self.folder, block).write(self._checked(make(block), block))

    def images(self, seeds: Sequence[int]) -> Tensor:
        """(B, 3, H, W) uint8, in the order of the seeds.

        Raises:
            DeepCacheError: samples are missing, or a file is broken.
        """
        found = torch.empty(len(seeds), 3, *self.manifest.image_size, dtype=torch.uint8)
        order = sorted(range(len(seeds)), key=lambda i: seeds[i])
        done = 0
        for images in self._parts([seeds[i] for i in order]):
            found[order[done : done + len(images)]] = images
            done += len(images)
        return found

    def batches(self, size: int, seeds: Iterable[int] | None = None) -> Iterator[Tensor]:
        """The samples of all seeds, or of some, ascending: (B, 3, H, W) uint8 with at most `size` of one shard.

        Raises:
            DeepCacheError: samples are missing, or a file is broken.
        """
        for images in self._parts(self.seeds() if seeds is None else sorted(seeds)):
            yield from images.split(size)

    def _parts(self, seeds: list[int]) -> Iterator[Tensor]:
        """The images of ascending seeds, those of a shard at a time."""
        if missing := self.missing(seeds):
            raise DeepCacheError(
                f"expected the samples of {len(seeds)} seeds in {self.folder}, of which {len(missing)} are missing, "
                f"the first of seed {missing[0]}; run its `python -m deepcache sample` again"
            )
        for shard in shards(self.folder):
            count = bisect_left(seeds, shard.seeds.stop)
            if some := seeds[bisect_left(seeds, shard.seeds.start) : count]:
                images = torch.from_numpy(self._checked(shard.read(), shard.seeds)).permute(0, 3, 1, 2)
                yield images[torch.tensor(some) - shard.seeds.start]
            seeds = seeds[count:]  # another shard may have some of them again, of a run that asked for more

    def _checked(self, images: Images, block: range) -> Images:
        expected = (len(block), *self.manifest.image_size, 3)
        if images.shape != expected:
            raise DeepCacheError(
                f"expected samples of shape {expected}, got {images.shape}; is the model's size right?"
            )
        return images
