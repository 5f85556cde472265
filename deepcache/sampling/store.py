"""A store: a folder of samples, filled by any number of processes, read in the order of the seeds."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deepcache.errors import DeepCacheError
from deepcache.files import remove_abandoned, whole_file
from deepcache.sampling.limits import require_seeds
from deepcache.sampling.manifest import FILE, LAYOUT, Manifest, read
from deepcache.sampling.shards import Images, Shard, aligned, gaps, joined, named
from deepcache.sampling.workers import Worker

Make = Callable[[range], Images]  # successive seeds to their samples, (B, H, W, 3) uint8
_TOLD = 5  # files that a refusal names


@dataclass(frozen=True)
class Store:
    """Samples in a folder: `manifest.json`, and shards (`Shard`) that begin at multiples of its `shard_size`.

    What lies in the folder is believed only where it says that it was made of the manifest.
    """

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
    def create(cls, folder: Path | str, manifest: Manifest, *, follows: Collection[str] = ()) -> Store:
        """To fill, begun or not; what killed processes left there is removed.

        Args:
            folder: where the store is, or will be.
            manifest: of the samples that are wanted.
            follows: attributes of the manifest that a store which is there decides, such as those of `LAYOUT`.

        Raises:
            DeepCacheError: a store of other samples is there, or shards without a manifest, or the folder cannot be
                written.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DeepCacheError(f"expected a folder to write to, got {folder} ({error.strerror})") from error
        remove_abandoned(folder)
        shards = named(folder)  # before the look for the manifest, which another process may write now, then shards
        if not (folder / FILE).exists():
            if shards:
                raise DeepCacheError(
                    f"expected a new store or one with its {FILE} in {folder}, got {len(shards)} files of samples "
                    f"without it; put their {FILE} back, or take another folder"
                )
            with whole_file(folder / FILE, replace=False) as file:  # of several processes at once, one wins
                file.write(manifest.to_json().encode())
        found = read(folder)
        manifest.following(found, follows).require(found, folder)
        return cls(folder, found)

    @classmethod
    def below(cls, parent: Path | str, manifest: Manifest, *, follows: Collection[str] = LAYOUT) -> Store:
        """The store of a manifest among the folders of `parent`, whatever its name, or `parent` itself; else a new one.

        Raises:
            DeepCacheError: as `create`.
        """
        parent = Path(parent)
        for path in sorted([*parent.glob(FILE), *parent.glob(f"*/{FILE}")]):
            try:
                found = read(path.parent)
                manifest.following(found, follows).require(found, path.parent)
            except DeepCacheError:  # another's, or none
                continue
            return cls.create(path.parent, manifest, follows=follows)
        return cls.create(parent / manifest.name, manifest)

    def seeds(self) -> list[int]:
        """Whose samples are there, ascending.

        Raises:
            DeepCacheError: a file is truncated, or of another store.
        """
        return [seed for part in self._there() for seed in part]

    def missing(self, seeds: Iterable[int]) -> list[int]:
        """Those of the seeds whose samples are not there.

        Raises:
            DeepCacheError: a file is truncated, or of another store.
        """
        return _missing(seeds, self._there())

    def is_complete(self, seeds: Iterable[int]) -> bool:
        return not self.missing(seeds)

    def work(self, seeds: range, worker: Worker) -> list[range]:
        """What is missing now of a worker's part of the seeds, each range of one shard; every file is looked at once.

        Raises:
            DeepCacheError: a file is truncated, or of another store.
        """
        there = self._there()
        owned = (wanted for number, wanted in aligned(seeds, self.manifest.shard_size) if worker.owns(number))
        return [gap for wanted in owned for gap in gaps(wanted, there)]

    def fill(self, seeds: range, make: Make, worker: Worker | None = None) -> None:
        """Sample what is missing of a worker's part of the seeds, a shard at a time.

        Args:
            seeds: of all workers.
            make: samples successive seeds of one shard: equal files come from any number of workers if what it
                makes depends on these alone.
            worker: which of several this is; alone if not given.

        Raises:
            DeepCacheError: seeds or samples that a shard cannot hold, a file that is truncated or of another store, or
                one that cannot be written.
        """
        require_seeds(seeds)
        for block in self.work(seeds, worker or Worker()):
            shard = Shard(self.folder, block, self.manifest)
            if shard.path.exists():  # another process has written it in the meantime
                shard.require()
            else:
                shard.write(self._checked(make(block), block))

    def images(self, seeds: Sequence[int]) -> Tensor:
        """(B, 3, H, W) uint8, in the order of the seeds.

        Raises:
            DeepCacheError: samples are missing, or a file is broken, or of another store.
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
            DeepCacheError: samples are missing, or a file is broken, or of another store.
        """
        for images in self._parts(self.seeds() if seeds is None else sorted(seeds)):
            yield from images.split(size)

    def _there(self) -> list[range]:
        """The seeds whose samples are there, as ascending ranges that do not meet."""
        shards = named(self.folder)
        self._require(shards)
        return joined(shards)

    def _require(self, shards: list[range]) -> None:
        """Refuse shards that are truncated, or were made of another manifest."""
        refusals = []
        for seeds in shards:
            shard = Shard(self.folder, seeds, self.manifest)
            try:
                shard.require()
            except DeepCacheError as error:
                refusals.append((shard.path.name, error))
        if refusals:
            (_, first), *others = refusals
            names = ", ".join(name for name, _ in others[: _TOLD - 1]) + ", ..." * (len(refusals) > _TOLD)
            raise DeepCacheError(
                f"{first}; {len(others)} more are refused: {names}" if others else str(first)
            ) from first

    def _parts(self, seeds: list[int]) -> Iterator[Tensor]:
        """The images of ascending seeds, those of a shard at a time."""
        shards = named(self.folder)
        if missing := _missing(seeds, joined(shards)):
            raise DeepCacheError(
                f"expected the samples of {len(seeds)} seeds in {self.folder}, of which {len(missing)} are missing, "
                f"the first of seed {missing[0]}; run its `python -m deepcache sample` again"
            )
        parts, done = [], 0
        for shard in shards:
            begin, end = (bisect_left(seeds, place, lo=done) for place in (shard.start, shard.stop))
            if begin < end:
                parts.append((shard, seeds[begin:end]))
            done = end  # another shard may have some of them again, of a run that asked for more
        self._require([shard for shard, _ in parts])
        for shard, some in parts:
            images = torch.from_numpy(Shard(self.folder, shard, self.manifest).read()).permute(0, 3, 1, 2)
            yield images[torch.tensor(some) - shard.start]

    def _checked(self, images: Images, block: range) -> Images:
        expected = (len(block), *self.manifest.image_size, 3)
        if images.shape != expected:
            raise DeepCacheError(
                f"expected samples of shape {expected}, got {images.shape}; is the model's size right?"
            )
        return images


def _missing(seeds: Iterable[int], there: list[range]) -> list[int]:
    parts = (seeds,) if isinstance(seeds, range) and seeds.step == 1 else (range(seed, seed + 1) for seed in seeds)
    return [seed for part in parts for gap in gaps(part, there) for seed in gap]
