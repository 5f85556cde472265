"""Files that are whole or not there: written under a temporary name beside their place, then moved into it."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from deepcache.errors import DeepCacheError

ABANDONED_S = 3600.0  # a temporary file is written in seconds
_NAME = re.compile(r"\.(?P<host>.+)\.(?P<pid>\d+)\.(?P<final>[^.]+\.[^.]+)\.tmp")


@contextmanager
def whole(path: Path, *, replace: bool = True) -> Iterator[IO[bytes]]:
    """A file to write, which stands at `path` after the block, on the disk and not in a cache alone.

    Args:
        path: where it goes.
        replace: whether to take the place of a file that is there; if not, that one stays.

    Raises:
        DeepCacheError: it cannot be written; as after any other error, no temporary file is left.
    """
    temporary = path.with_name(f".{socket.gethostname()}.{os.getpid()}.{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
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
        temporary.unlink(missing_ok=True)


def clean(folder: Path) -> None:
    """Remove what killed processes left: of this machine those that are gone, of others what is an hour old.

    Call it before this process writes: a file under its own number is an earlier process's.
    """
    for path in folder.glob(".*.tmp"):
        found = _NAME.fullmatch(path.name)
        if found and _is_abandoned(path, found["host"], int(found["pid"])):
            path.unlink(missing_ok=True)


def _is_abandoned(path: Path, host: str, pid: int) -> bool:
    if host == socket.gethostname() and (pid == os.getpid() or not _is_running(pid)):
        return True
    with suppress(FileNotFoundError):
        return time.time() - path.stat().st_mtime > ABANDONED_S
    return False


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def _sync(folder: Path) -> None:
    """The folder's list of names, too."""
    number = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems cannot, and the file is in its place
            os.fsync(number)
    finally:
        os.close(number)
