"""Shards are files of the samples of successive seeds; equal samples give equal bytes."""

from __future__ import annotations

import errno
import os
import re
import stat
import zipfile
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcache.errors import DeepCacheError, first_line
from deepcache.files import whole_file
from deepcache.sampling.limits import END_OF_SEEDS
from deepcache.sampling.manifest import Manifest

Pixels = NDArray[np.uint8]  # (B, H, W, 3)
_NAME = re.compile(r"seeds-([0-9]{8,19})-([0-9]{8,19})\.npz")
_ORIGIN = "origin.txt"  # the member that names the manifest and the seeds
_IMAGES, _SEEDS = "arr_0", "seeds"
_MOST_HEADER = 4_096  # bytes that numpy puts before an array's values


@dataclass(frozen=True)
class Shard:
    """The file `seeds-START-STOP.npz` of a store.

    The file holds `arr_0` (B, H, W, 3) uint8, as the ADM suite reads it, `seeds` (B,) int64, and `origin.txt`: the
    manifest's digest and the ends of the seeds, so that a foreign file is recognised without reading its images.
    """

    folder: Path
    seeds: range
    manifest: Manifest

    @property
    def path(self) -> Path:
        return self.folder / _name(self.seeds)

    def write(self, images: Pixels) -> None:
        """Write the samples, one a seed, under a temporary name, then rename the file.

        Raises:
            DeepCacheError: the file cannot be written, for instance because the disk is full.
        """
        with whole_file(self.path) as file, zipfile.ZipFile(file, "w") as archive:
            archive.writestr(zipfile.ZipInfo(_ORIGIN), self._origin)  # a ZipInfo of our own has no time of writing
            for name, values in ((_IMAGES, images), (_SEEDS, np.array(self.seeds, dtype=np.int64))):
                with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, values, allow_pickle=False)

    def require(self) -> None:
        """Refuse a file that is not this shard, without reading its images.

        Raises:
            DeepCacheError: the file is truncated, no regular file, of another manifest or other seeds, or cannot be
                read.
        """
        with self._opened():
            pass

    def read(self) -> Pixels:
        """Return the samples, (B, H, W, 3), in the order of the seeds.

        Raises:
            DeepCacheError: the file is not what `write` wrote, or cannot be read.
        """
        with self._opened() as archive:
            images = _array(archive, _IMAGES, np.uint8, (len(self.seeds), *self.manifest.image_size, 3))
            seeds = _array(archive, _SEEDS, np.int64, (len(self.seeds),))
            if seeds.tolist() != list(self.seeds):
                raise ValueError(f"seeds {seeds[0]} to {seeds[-1]}")
        return np.asarray(images, dtype=np.uint8)

    @property
    def _origin(self) -> bytes:
        return f"sha256:{self.manifest.digest} seeds {self.seeds.start}:{self.seeds.stop}\n".encode()

    @contextmanager
    def _opened(self) -> Iterator[zipfile.ZipFile]:
        """Open the file and check its origin.

        Altered bytes make zipfile and numpy raise a dozen kinds of errors, also inside the block; each of them becomes
        the same refusal.
        """
        try:
            if not stat.S_ISREG(os.stat(self.path).st_mode):
                raise self._refused("which is no file", "move it away and sample again")
            with zipfile.ZipFile(self.path) as archive:
                self._require_origin(archive)
                yield archive
        except DeepCacheError:
            raise
        except Exception as error:
            if _is_of_the_system(error):
                reason = f"which cannot be read ({getattr(error, 'strerror', None) or first_line(error)})"
                raise self._refused(reason, "mend that and run the command again") from error
            raise self._refused(
                f"which is truncated or altered ({first_line(error)})", "delete it and sample again"
            ) from error

    def _require_origin(self, archive: zipfile.ZipFile) -> None:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
        if sizes.get(_ORIGIN) != len(self._origin) or archive.read(_ORIGIN) != self._origin:
            said = "says nothing of its origin" if _ORIGIN not in sizes else "was made of other seeds or settings"
            raise self._refused(f"which {said}", "move it to another folder and sample again")
        pixels = len(self.seeds) * self.manifest.image_size[0] * self.manifest.image_size[1] * 3
        for name, expected in ((_IMAGES, pixels), (_SEEDS, 8 * len(self.seeds))):
            if not expected <= sizes.get(f"{name}.npy", 0) <= expected + _MOST_HEADER:
                raise ValueError(f"{name} has {sizes.get(f'{name}.npy', 0)} bytes, not {expected}")

    def _refused(self, reason: str, advice: str) -> DeepCacheError:
        seeds = f"{self.seeds.start}:{self.seeds.stop}"
        return DeepCacheError(f"expected the samples of seeds {seeds} in {self.path}, {reason}; {advice}")


def named(folder: Path) -> list[range]:
    """Return the seeds of a folder's shards, ascending, as the files' names tell them; no file is opened.

    Raises:
        DeepCacheError: the folder cannot be read.
    """
    try:
        names = [_NAME.fullmatch(name) for name in os.listdir(folder)]
    except OSError as error:
        raise DeepCacheError(
            f"expected a store in {folder}, which cannot be read ({error.strerror}); correct its permissions"
        ) from error
    found = [(range(int(name[1]), int(name[2])), name[0]) for name in names if name]
    ours = [seeds for seeds, name in found if seeds.start < seeds.stop <= END_OF_SEEDS and _name(seeds) == name]
    return sorted(ours, key=lambda seeds: (seeds.start, seeds.stop))


def aligned(seeds: range, size: int) -> Iterator[tuple[int, range]]:
    """Cut seeds at multiples of a shard's size: yield the absolute number of each shard, and its seeds among these."""
    for number in range(seeds.start // size, -(-seeds.stop // size)):
        yield number, range(max(seeds.start, number * size), min(seeds.stop, (number + 1) * size))


def joined(parts: Iterable[range]) -> list[range]:
    """Unite ranges, which come in the order of their first seeds, to as few ranges as possible."""
    found: list[range] = []
    for part in parts:
        if found and part.start <= found[-1].stop:
            found[-1] = range(found[-1].start, max(found[-1].stop, part.stop))
        else:
            found.append(part)
    return found


def gaps(seeds: range, there: list[range]) -> Iterator[range]:
    """Yield the parts of `seeds` that are in none of the ranges `there`, which ascend and do not touch.

    Only the ranges near the seeds are looked at, found by bisection.
    """
    start = seeds.start
    for i in range(max(0, bisect_right(there, start, key=lambda part: part.start) - 1), len(there)):
        if there[i].start >= seeds.stop:
            break
        if start < there[i].start:
            yield range(start, there[i].start)
        start = max(start, there[i].stop)
    if start < seeds.stop:
        yield range(start, seeds.stop)


def _is_of_the_system(error: Exception) -> bool:
    """Return whether the disk, the permissions or the memory are at fault, and not the file's content."""
    is_read = (
        isinstance(error, OSError) and error.errno != errno.EINVAL
    )  # EINVAL: zipfile seeks before the file's beginning
    return is_read or isinstance(error, MemoryError)


def _name(seeds: range) -> str:
    return f"seeds-{seeds.start:08d}-{seeds.stop:08d}.npz"


def _array(archive: zipfile.ZipFile, name: str, dtype: type[np.generic], shape: tuple[int, ...]) -> NDArray[Any]:
    """Read an array; refuse it by its header if its type or shape is not the expected one."""
    with archive.open(f"{name}.npy") as member:
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        found_shape, _, found_dtype = header[np.lib.format.read_magic(member)](member)
        if (found_shape, found_dtype) != (shape, np.dtype(dtype)):
            raise ValueError(f"{found_dtype} {found_shape} as {name}")
        member.seek(0)
        return np.asarray(np.lib.format.read_array(member, allow_pickle=False))
