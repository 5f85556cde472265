"""Files from elsewhere, and arrays in an `.npz`, whose shapes and types bound what is read afterwards."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from deepcache.errors import DeepCacheError, first_line

MOST_BYTES = 1 << 30  # of an array that is read whole: 130,000 features of Inception
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # those of numpy
_MOST_INFLATED = 1032  # bytes that a byte of deflate's output can stand for
_IS_ENCRYPTED = 1  # a bit of a member's flags
_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True)
class Header:
    """The header of an array in an archive tells its form before its values are read."""

    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype[Any]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def headers(path: Path) -> dict[str, Header]:
    """The header of each array in an archive, by the array's name; no values are read.

    Raises:
        DeepCacheError: the file is no `.npz`, or has an array that numpy cannot have written.
    """
    with readable(path, "an .npz"), zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
        return {member.filename.removesuffix(".npy"): _header(archive, member, path) for member in members}


def array(path: Path, name: str) -> NDArray[Any]:
    """Read a whole array of plain numbers.

    Raises:
        DeepCacheError: the array is not there, is damaged, holds objects, or has more than `MOST_BYTES`.
    """
    with opened(path, name) as (stream, header):
        if header.num_bytes > MOST_BYTES:
            raise DeepCacheError(f"expected at most {MOST_BYTES:,} bytes of {name} in {path}, which has more")
        stream.seek(0)
        return np.lib.format.read_array(stream, allow_pickle=False)


@contextmanager
def opened(path: Path, name: str) -> Iterator[tuple[IO[bytes], Header]]:
    """Open an array behind its header, so that the caller reads its values part by part."""
    with readable(path, "an .npz"), zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as stream:
        header = _read_header(stream)
        yield stream, header


@contextmanager
def readable(path: Path, what: str, problem: str = "is truncated or something else") -> Iterator[None]:
    """Within the block, turn what libraries raise on a file from elsewhere into a `DeepCacheError` of one line."""
    try:
        yield
    except DeepCacheError:
        raise
    except Exception as error:  # altered bytes raise a dozen kinds
        reason = first_line(error)
        raise DeepCacheError(f"expected {what} in {path}, which {problem} ({reason}); get it again") from error


def _header(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> Header:
    if member.flag_bits & _IS_ENCRYPTED:
        raise DeepCacheError(f"expected an .npz without a password in {path}, got {member.filename} encrypted")
    if member.compress_type not in _COMPRESSIONS:
        raise DeepCacheError(
            f"expected an .npz of numpy.savez or savez_compressed in {path}, got {member.filename} compressed "
            "in another way; save it again"
        )
    with archive.open(member) as stream:
        found = _read_header(stream)
        room = min(member.file_size, _MOST_INFLATED * path.stat().st_size) - stream.tell()
    if found.num_bytes > room or min(found.shape, default=0) < 0:
        raise ValueError(f"{member.filename} says {found.dtype} {found.shape}, and has {max(room, 0):,} bytes")
    return found


def _read_header(stream: IO[bytes]) -> Header:
    version = np.lib.format.read_magic(stream)
    if version not in _READERS:
        raise ValueError(f"version {version} of numpy's format")
    return Header(*_READERS[version](stream))
