"""Files that are whole or not there: written under a temporary name beside their place, then moved into it."""

from __future__ import annotations

import os
import re
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO

from deepcache.errors import DeepCacheError

ABANDONED_S = 3600.0  # a temporary file is written in seconds
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NAME = re.compile(r"\.(?P<machine>.+)\.(?P<token>[0-9a-f]+)\.(?P<final>[^.]+\.[^.]+)\.tmp")


@contextmanager
def whole(path: Path, *, replace: bool = True) -> Iterator[IO[bytes]]:
    """A file to write, which stands at `path` after the block, on the disk and not in a cache alone.

    The temporary file has a name that no other writer chooses, and its writer holds a lock on it until it is in its
    place. The operating system gives the lock back when the writer ends, even by `kill -9`, so `clean` can tell a file
    that is being written from one that was left.

    Args:
        path: where the file goes.
        replace: whether to take the place of a file that is there; if not, that one stays.

    Raises:
        DeepCacheError: the file cannot be written; as after any other error, no temporary file is left.
    """
    temporary = path
    try:
        temporary, file = _created(path)
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if replace:
                temporary.replace(path)
            else:
                with suppress(FileExistsError):
                    os.link(temporary, path)
        _sync(path.parent)
    except OSError as error:
        raise DeepCacheError(
            f"cannot write {path}: {error.strerror or error}; free space or take another folder, "
            "then run the same command again"
        ) from error
    finally:
        if temporary != path:
            with suppress(OSError):  # the error that brought us here is the one to tell
                temporary.unlink(missing_ok=True)


def clean(folder: Path) -> None:
    """Remove the temporary files that no process writes any more; what cannot be removed stays.

    A file of this machine is removed when nobody holds its lock. The locks of another machine may not be seen from here
    (NFS without locks), nor those of a file system that has none; there the file must be an hour old as well.
    """
    for path in folder.glob(".*.tmp"):
        if found := _NAME.fullmatch(path.name):
            with suppress(OSError):  # it is gone, or another user's, or the folder is read-only
                _remove_abandoned(path, found["machine"])


def _remove_abandoned(path: Path, machine: str) -> None:
    with path.open("r+b") as file:  # NFS locks only files that are open for writing
        try:
            is_locked, is_known = not _take_lock(file), machine == _machine()
        except OSError:  # a file system without locks
            is_locked, is_known = False, False
        if not is_locked and (is_known or time.time() - os.fstat(file.fileno()).st_mtime > ABANDONED_S):
            path.unlink()


def _created(path: Path) -> tuple[Path, IO[bytes]]:
    """A new temporary file for a path, open and locked."""
    while True:
        temporary = path.with_name(f".{_machine()}.{secrets.token_hex(8)}.{path.name}.tmp")
        file = temporary.open("xb")
        try:
            is_ours = _take_lock(file)
        except OSError:  # a file system without locks
            is_ours = True
        if is_ours and temporary.exists():
            return temporary, file
        file.close()  # `clean` came between the file and its lock, and took it for abandoned
        temporary.unlink(missing_ok=True)


def _take_lock(file: IO[bytes]) -> bool:
    """Whether the lock of an open file is now this process's; another process may have it.

    Raises:
        OSError: the file system has no locks.
    """
    import fcntl  # not on Windows, where the package is imported, too

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@cache
def _machine() -> str:
    """What tells this machine from others, and from itself before it was started anew; containers on it share it."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return socket.gethostname()


def _sync(folder: Path) -> None:
    """Put the folder's list of names on the disk, too, where the file system can."""
    with suppress(OSError):  # the file is in its place
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
