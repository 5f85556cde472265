"""A store is a folder of samples, filled by any number of processes and read in the order of the seeds."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from deepcache.errors import DeepCacheError
from deepcache.files import remove_abandoned, whole_file
from deepcache.sampling.manifest import FILE, LAYOUT, Manifest, read
from deepcache.sampling.seeds import Worker, gaps, joined, require_seeds
from deepcache.sampling.shards import Pixels, Shard, named

Make = Callable[[range], Pixels]  # from successive seeds to their samples
_TOLD = 5  # files that one error names


@dataclass(frozen=True)
class Store:
    """Samples in a folder: `manifest.json`, and shards (`Shard`) that begin at multiples of its `shard_size`.

    A shard counts only if its `origin.txt` names the manifest. Each method that looks at shards raises a
    `DeepCacheError` about a shard that is truncated or of another store.
    """

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path | str) -> Store:
        """Open a store to read it, finished or not; a folder without a store is refused."""
        return cls(Path(folder), read(Path(folder)))

    @classmethod
    def create(cls, folder: Path | str, manifest: Manifest, *, follows: Collection[str] = ()) -> Store:
        """Open a store to fill it, or begin a new store; temporary files of killed processes are removed.

        Args:
            folder: where the store is, or will be; other samples, or samples without a manifest, are refused.
            manifest: the manifest of the wanted samples.
            follows: attributes that an existing store may have otherwise, such as those of `LAYOUT`.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DeepCacheError(f"expected a folder to write to, got {folder} ({error.strerror})") from error
        remove_abandoned(folder)
        shards = named(folder)  # listed first: another process may write the manifest and shards meanwhile
        if not (folder / FILE).exists():
            if shards:
                raise DeepCacheError(
                    f"expected a new store or one with its {FILE} in {folder}, got {len(shards)} files of samples "
                    f"without it; put their {FILE} back, or take another folder"
                )
            with whole_file(folder / FILE, replace=False) as file:  # the first of several processes wins
                file.write(manifest.to_json().encode())
        found = read(folder)
        manifest.require(found, folder, follows)
        return cls(folder, found)

    @classmethod
    def below(cls, parent: Path | str, manifest: Manifest, *, follows: Collection[str] = LAYOUT) -> Store:
        """Open the store of a manifest: `parent` itself, or a folder in it of any name; else begin a new store."""
        parent = Path(parent)
        for path in sorted([*parent.glob(FILE), *parent.glob(f"*/{FILE}")]):
            try:
                manifest.require(read(path.parent), path.parent, follows)
            except DeepCacheError:  # a store of other samples, or no store
                continue
            return cls.create(path.parent, manifest, follows=follows)
        return cls.create(parent / manifest.name, manifest)

    def seeds(self) -> list[int]:
        """Return the seeds whose samples the store has, ascending."""
        return [seed for part in self._there() for seed in part]

    def missing(self, seeds: Iterable[int]) -> list[int]:
        """Return the seeds whose samples the store does not have."""
        return _missing(seeds, self._there())

    def work(self, seeds: range, worker: Worker) -> list[range]:
        """Return what is missing of a worker's share of the seeds, as ranges within one shard each."""
        there = self._there()
        return [gap for wanted in worker.share(seeds, self.manifest.shard_size) for gap in gaps(wanted, there)]

    def fill(self, seeds: range, make: Make, worker: Worker | None = None) -> None:
        """Sample what is missing of a worker's share of all workers' seeds, a shard at a time.

        `make` samples successive seeds of one shard. If its result depends on these seeds alone, any number of workers
        writes the same files. If no worker is given, there is only one.
        """
        require_seeds(seeds)
        for block in self.work(seeds, worker or Worker()):
            shard = Shard(self.folder, block, self.manifest)
            if shard.path.exists():  # another process has written the shard meanwhile
                shard.require()
            else:
                shard.write(make(block))

    def images(self, seeds: Sequence[int]) -> Tensor:
        """Return images, (B, 3, H, W) uint8, in the order of the seeds; missing samples are an error."""
        found = torch.empty(len(seeds), 3, *self.manifest.image_size, dtype=torch.uint8)
        order = sorted(range(len(seeds)), key=lambda i: seeds[i])
        parts = self._parts([seeds[i] for i in order])
        for place, image in zip(order, chain.from_iterable(parts), strict=True):
            found[place] = image
        return found

    def batches(self, size: int, seeds: Iterable[int] | None = None) -> Iterator[Tensor]:
        """Yield the images of all seeds or of some, ascending: (B, 3, H, W) uint8, at most `size` of one shard."""
        for images in self._parts(self.seeds() if seeds is None else sorted(seeds)):
            yield from images.split(size)

    def _there(self) -> list[range]:
        """Return the seeds whose samples the store has, as ascending ranges that do not touch."""
        shards = named(self.folder)
        self._require(shards)
        return joined(shards)

    def _require(self, shards: list[range]) -> None:
        """Refuse shards that are truncated or of another manifest; one error names several of them."""
        refusals: dict[str, DeepCacheError] = {}
        for seeds in shards:
            shard = Shard(self.folder, seeds, self.manifest)
            try:
                shard.require()
            except DeepCacheError as error:
                refusals[shard.path.name] = error
        if refusals:
            first, (_, *others) = next(iter(refusals.values())), refusals
            names = ", ".join(others[: _TOLD - 1]) + ", ..." * (len(others) >= _TOLD)
            rest = f"; {len(others)} more are refused: {names}" if others else ""
            raise DeepCacheError(f"{first}{rest}") from first

    def _parts(self, seeds: list[int]) -> Iterator[Tensor]:
        """Yield the images of ascending seeds, a shard at a time."""
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
            done = end  # a longer shard, of a command with more seeds, may hold the same samples again
        self._require([shard for shard, _ in parts])
        for shard, some in parts:
            images = torch.from_numpy(Shard(self.folder, shard, self.manifest).read()).permute(0, 3, 1, 2)
            yield images[torch.tensor(some) - shard.start]


def _missing(seeds: Iterable[int], there: list[range]) -> list[int]:
    parts = (seeds,) if isinstance(seeds, range) and seeds.step == 1 else (range(seed, seed + 1) for seed in seeds)
    return [seed for part in parts for gap in gaps(part, there) for seed in gap]


@dataclass(frozen=True)
class StoredImages:
    """Images (B, 3, H, W) in 0..1 of ascending seeds, read in parts by `split`; they can be sliced as a tensor can."""

    store: Store
    seeds: Sequence[int]

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, part: slice) -> StoredImages:
        return StoredImages(self.store, self.seeds[part])

    def split(self, size: int) -> Iterator[Tensor]:
        """Yield `size` images at a time; every file is read once, and seeds that do not ascend are refused."""
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
