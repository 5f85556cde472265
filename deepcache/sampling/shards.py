"""Shards are files of the samples of successive seeds; equal samples give equal bytes."""

from __future__ import annotations

import errno
import os
import re
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcache.errors import DeepCacheError, first_line
from deepcache.files import whole_file
from deepcache.sampling.manifest import Manifest
from deepcache.sampling.seeds import END_OF_SEEDS

Pixels = NDArray[np.uint8]  # (B, H, W, 3)
_NAME = re.compile(r"seeds-([0-9]{8,19})-([0-9]{8,19})\.npz")
_ORIGIN = "origin.txt"  # the member that names the manifest and the seeds
_IMAGES, _SEEDS = "arr_0.npy", "seeds.npy"
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

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the samples, (B, H, W, 3)."""
        return len(self.seeds), *self.manifest.image_size, 3

    def write(self, images: Pixels) -> None:
        """Write the samples, one a seed; refuse samples of another shape, such as those of another model."""
        if images.shape != self.shape:
            raise DeepCacheError(
                f"expected samples of shape {self.shape}, got {images.shape}; is the model's size right?"
            )
        arrays: dict[str, NDArray[Any]] = {_IMAGES: images, _SEEDS: np.array(self.seeds, dtype=np.int64)}
        with whole_file(self.path) as file, zipfile.ZipFile(file, "w") as archive:
            archive.writestr(zipfile.ZipInfo(_ORIGIN), self._origin)  # a ZipInfo of our own has no time of writing
            for name, values in arrays.items():
                with archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, values, allow_pickle=False)

    def require(self) -> None:
        """Refuse a file that is truncated, no regular file or of another origin, without reading its images."""
        with self._opened():
            pass

    def read(self) -> Pixels:
        """Return the samples, (B, H, W, 3), in the order of the seeds; refuse a file that `write` did not write."""
        with self._opened() as archive:
            images = _array(archive, _IMAGES, np.dtype(np.uint8), self.shape)
            seeds = _array(archive, _SEEDS, np.dtype(np.int64), self.shape[:1])
            if seeds.tolist() != list(self.seeds):
                raise ValueError(f"seeds {seeds[0]} to {seeds[-1]}")
        return images

    @property
    def _origin(self) -> bytes:
        return f"sha256:{self.manifest.digest} seeds {self.seeds.start}:{self.seeds.stop}\n".encode()

    @contextmanager
    def _opened(self) -> Iterator[zipfile.ZipFile]:
        """Open the file, and check its origin and the sizes of its arrays; refuse it also for errors in the block."""
        try:
            if not stat.S_ISREG(os.stat(self.path).st_mode):
                raise self._refused("which is no file; move it away and sample again")
            with zipfile.ZipFile(self.path) as archive:
                sizes = {info.filename: info.file_size for info in archive.infolist()}
                if sizes.get(_ORIGIN) != len(self._origin) or archive.read(_ORIGIN) != self._origin:
                    said = "was made of other seeds or settings" if _ORIGIN in sizes else "says nothing of its origin"
                    raise self._refused(f"which {said}; move it to another folder and sample again")
                for name, expected in ((_IMAGES, prod(self.shape)), (_SEEDS, 8 * len(self.seeds))):
                    if not expected <= sizes.get(name, 0) <= expected + _MOST_HEADER:
                        raise ValueError(f"{name} has {sizes.get(name, 0)} bytes, not {expected}")
                yield archive
        except DeepCacheError:
            raise
        except Exception as error:  # altered bytes make zipfile and numpy raise a dozen kinds of errors
            said = getattr(error, "strerror", None) or first_line(error)
            is_seek = getattr(error, "errno", None) == errno.EINVAL  # zipfile seeks before the file's beginning
            if isinstance(error, (OSError, MemoryError)) and not is_seek:
                raise self._refused(f"which cannot be read ({said}); mend that and run the command again") from error
            raise self._refused(f"which is truncated or altered ({said}); delete it and sample again") from error

    def _refused(self, reason: str) -> DeepCacheError:
        seeds = f"{self.seeds.start}:{self.seeds.stop}"
        return DeepCacheError(f"expected the samples of seeds {seeds} in {self.path}, {reason}")


def named(folder: Path) -> list[range]:
    """Return the seeds of a folder's shards, ascending, as the files' names tell them; no file is opened."""
    try:
        names = [_NAME.fullmatch(name) for name in os.listdir(folder)]
    except OSError as error:
        raise DeepCacheError(
            f"expected a store in {folder}, which cannot be read ({error.strerror}); correct its permissions"
        ) from error
    found = [(range(int(name[1]), int(name[2])), name[0]) for name in names if name]
    ours = [seeds for seeds, name in found if seeds.start < seeds.stop <= END_OF_SEEDS and _name(seeds) == name]
    return sorted(ours, key=lambda seeds: (seeds.start, seeds.stop))


def _name(seeds: range) -> str:
    return f"seeds-{seeds.start:08d}-{seeds.stop:08d}.npz"


def _array(archive: zipfile.ZipFile, name: str, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> Pixels:
    """Read an array; refuse it by its header if its type or shape is not the expected one."""
    with archive.open(name) as member:
        version = np.lib.format.read_magic(member)
        found_shape, _, found_dtype = np.lib.format.read_array_header_1_0(member)
        if (version, found_shape, found_dtype) != ((1, 0), shape, dtype):
            raise ValueError(f"{found_dtype} {found_shape} as {name}")
        member.seek(0)
        return np.asarray(np.lib.format.read_array(member, allow_pickle=False))
