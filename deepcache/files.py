"""Files: files from elsewhere are read whole or refused in one line; files of ours are written whole or not at all.

Nobody vouches for the content of a file that a user names, so every reader here bounds what it reads. A writer fills a
temporary file beside the final path and then moves the temporary file to that path.
"""

from __future__ import annotations

import codecs
import json
import os
import re
import secrets
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any, BinaryIO

import yaml

from deepcache.errors import DeepCacheError, first_line, on_one_line, shown

MOST_BYTES = 64 << 20  # COCO's captions_val2014.json has 32 MiB
MOST_DEEP = 64  # levels of lists and objects inside each other
MOST_LISTS = 2_000_000  # lists and objects; COCO's captions have 250,000
MOST_DIGITS = 20  # of a whole number; 2^64 has as many
MOST_BYTES_OF_YAML = 64 << 10  # CompVis' configurations have 3 KiB, and PyYAML reads 100 KiB a second
ABANDONED_S = 3600.0  # age in seconds; writing a temporary file takes seconds
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_TEMPORARY = re.compile(r"\.(?P<machine>.+)\.(?P<token>[0-9a-f]+)\.(?P<final>[^.]+\.[^.]+)\.tmp")


def read_bytes(path: str | Path, what: str, *, most_bytes: int = MOST_BYTES) -> bytes:
    """Return the bytes of a regular file.

    Args:
        path: the file.
        what: what the file is expected to be, for the error message, e.g. "a plan's JSON".
        most_bytes: the largest size in bytes that is read.

    Raises:
        DeepCacheError: `path` is no path, or the file does not exist, cannot be read, is larger than `most_bytes`, or
            is a folder, a pipe or a device.
    """
    try:
        with _opened(as_path(path, what), what) as file:
            found = file.read(most_bytes + 1)
    except (OSError, ValueError) as error:  # a ValueError is about a null character in the path
        reason = (error.strerror if isinstance(error, OSError) else None) or first_line(error)
        raise refused(path, what, f"which cannot be read ({reason}); correct the path") from error
    if len(found) > most_bytes:
        raise refused(path, what, f"which has more than {most_bytes:,} bytes; pass another file")
    return found


def read_text(path: str | Path, what: str, *, most_bytes: int = MOST_BYTES) -> str:
    """Return the text of a UTF-8 file without the byte order mark that some editors write.

    Raises:
        DeepCacheError: as `read_bytes`, or the file has another encoding.
    """
    found = read_bytes(path, what, most_bytes=most_bytes)
    if found.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise refused(path, what, "which is in UTF-16; save it in UTF-8")
    try:
        return found.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"which is not in UTF-8 (byte {error.start} is 0x{found[error.start]:02x}); save it in UTF-8"
        raise refused(path, what, reason) from error


def read_json(path: str | Path, what: str, *, most_bytes: int = MOST_BYTES) -> Any:
    """Return the value of a JSON file. The caller checks the value's types; NaN and infinity are allowed.

    Raises:
        DeepCacheError: as `read_text` and `json_value`.
    """
    return json_value(read_text(path, what, most_bytes=most_bytes), what, path)


def json_value(text: str, what: str, source: object) -> Any:
    """Return the value of a JSON text.

    Args:
        text: the JSON.
        what: what the text is expected to be, for the error message.
        source: where the text comes from, for the error message.

    Raises:
        DeepCacheError: the text is no JSON, nests lists and objects deeper than `MOST_DEEP`, has more than `MOST_LISTS`
            of them, has a whole number of more than `MOST_DIGITS` digits, or has half a character (a lone surrogate).
    """
    if text.count("[") + text.count("{") > MOST_LISTS:
        raise refused(source, what, f"which has more than {MOST_LISTS:,} lists and objects; pass another file")
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise _too_deep(source, what) from error
    except ValueError as error:  # JSONDecodeError, or a whole number with too many digits for int
        raise refused(source, what, f"which is no JSON ({first_line(error)})") from error
    _require_plain(found, what, source)
    return found


def read_yaml(path: str | Path, what: str, *, most_bytes: int = MOST_BYTES_OF_YAML) -> Any:
    """Return the value of a YAML file that has plain values and no alias. The caller checks the value's types.

    A few aliases can stand for gigabytes, or for a value that contains itself.

    Raises:
        DeepCacheError: as `read_text`, or the text is no YAML, has an alias, or nests values deeper than `MOST_DEEP`.
    """
    text = read_text(path, what, most_bytes=most_bytes)
    try:
        return yaml.load(text, _PlainLoader)
    except _TooDeepError as error:
        raise _too_deep(path, what) from error
    except _AliasError as error:
        raise refused(path, what, "which has an alias (*name); write its value in its place") from error
    except Exception as error:  # PyYAML raises half a dozen types on texts such as `!!bool 2`
        raise refused(path, what, f"which is no YAML ({on_one_line(error)})") from error


def as_path(path: object, what: str) -> Path:
    """Return a path as a `Path`.

    Raises:
        DeepCacheError: `path` is neither a string nor a path.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise DeepCacheError(f"expected {what} and therefore a path, got {shown(path)}")
    return Path(path)


def refused(source: object, what: str, reason: str) -> DeepCacheError:
    """Return the error that `source` is not `what` was expected; `reason` begins with "which"."""
    name = str(source)
    return DeepCacheError(f"expected {what} in {name if name.isprintable() else ascii(name)}, {reason}")


class _TooDeepError(Exception):
    pass


class _AliasError(Exception):
    pass


class _PlainLoader(yaml.SafeLoader):  # type: ignore[misc]
    """Loads plain YAML values of bounded depth, and refuses aliases."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise _AliasError
        if self.depth > MOST_DEEP:
            raise _TooDeepError
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


def _opened(path: Path, what: str) -> BinaryIO:
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise refused(path, what, "which is a folder; pass a file")
    if not stat.S_ISREG(mode):
        raise refused(path, what, "which is a pipe or a device; pass a file")
    return open(path, "rb")


def _require_plain(found: Any, what: str, source: object) -> None:
    """Check a JSON value level by level, because recursion would overflow the stack on deep values."""
    level = [found]
    for _ in range(MOST_DEEP + 1):
        if any(type(value) is int and abs(value) >= 10**MOST_DIGITS for value in level):
            raise refused(source, what, f"which has a whole number of more than {MOST_DIGITS} digits")
        if any(type(value) is str and not _is_text(value) for value in level):
            raise refused(source, what, "which has half a character (a lone surrogate)")
        lists = [value for value in level if isinstance(value, list)]
        objects = [value for value in level if isinstance(value, dict)]
        level = [value for each in lists for value in each]
        level += [value for each in objects for pair in each.items() for value in pair]
        if not level:
            return
    raise _too_deep(source, what)


def _is_text(value: str) -> bool:
    return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)


def _too_deep(source: object, what: str) -> DeepCacheError:
    return refused(source, what, f"which has values more than {MOST_DEEP} deep within each other; pass another file")


def write_text(path: Path, text: str) -> Path:
    """Write a text in UTF-8 by `whole_file`, make the folder that the file goes to, and return the path.

    Raises:
        DeepCacheError: the folder cannot be made, or the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error
    with whole_file(path) as file:
        file.write(text.encode())
    return path


@contextmanager
def whole_file(path: Path, *, replace: bool = True) -> Iterator[IO[bytes]]:
    """Open a temporary file for writing, and move the file to `path` when the block ends without an error.

    Afterwards the file is on the disk, not in a cache alone. The temporary file has a name that no other writer
    chooses. Its writer holds a lock on the file until the file is in its place; the operating system releases the lock
    when the writer ends, even by `kill -9`, so `remove_abandoned` can tell a file that somebody is writing from a file
    that a writer left behind.

    Args:
        path: where the file goes.
        replace: whether the file replaces a file at `path`; if False, the older file stays.

    Yields:
        The temporary file, open for writing bytes.

    Raises:
        DeepCacheError: the file cannot be written. After this and any other error, no temporary file is left.
    """
    temporary = path
    try:
        temporary, file = _created(path)
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if os.name == "nt":  # Windows moves no open file
                file.close()
            if replace:
                temporary.replace(path)
            else:
                with suppress(FileExistsError):
                    os.link(temporary, path)
        _sync(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        if temporary != path:
            with suppress(OSError):  # an error here must not hide the first error
                temporary.unlink(missing_ok=True)


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary files in a folder that no process writes any longer; a file that cannot be removed stays.

    A file that this machine wrote is abandoned when nobody holds its lock. Locks of another machine may be invisible
    from here (NFS without locks), and some file systems have no locks; there, a file must be an hour old as well.
    """
    for path in folder.glob(".*.tmp"):
        if found := _TEMPORARY.fullmatch(path.name):
            with suppress(OSError):  # the file is gone or belongs to another user, or the folder is read-only
                _remove_if_abandoned(path, found["machine"])


def _remove_if_abandoned(path: Path, machine: str) -> None:
    with path.open("r+b") as file:  # NFS locks only files that are open for writing
        try:
            is_locked, is_known = not _take_lock(file), machine == _machine()
        except OSError:  # a file system without locks
            is_locked, is_known = False, False
        if not is_locked and (is_known or time.time() - os.fstat(file.fileno()).st_mtime > ABANDONED_S):
            path.unlink()


def _created(path: Path) -> tuple[Path, IO[bytes]]:
    """Create a temporary file for `path`, open and locked."""
    while True:
        temporary = path.with_name(f".{_machine()}.{secrets.token_hex(8)}.{path.name}.tmp")
        file = temporary.open("xb")
        try:
            is_ours = _take_lock(file)
        except OSError:  # a file system without locks
            is_ours = True
        if is_ours and temporary.exists():
            return temporary, file
        file.close()  # `remove_abandoned` saw the file before it was locked, and removed it
        temporary.unlink(missing_ok=True)


def _take_lock(file: IO[bytes]) -> bool:
    """Try to lock an open file; return False if another process holds the lock.

    Raises:
        OSError: the file system has no locks.
    """
    try:
        import fcntl
    except ImportError as error:  # Windows
        raise OSError("this platform has no fcntl") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@cache
def _machine() -> str:
    """Return a name of this machine since its last start; containers on one machine share the name."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return socket.gethostname()


def _sync(folder: Path) -> None:
    """Write the folder's list of names to the disk where the file system supports that."""
    with suppress(OSError):  # the file itself is in its place
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _unwritable(path: Path, error: OSError) -> DeepCacheError:
    return DeepCacheError(
        f"cannot write {path}: {error.strerror or error}; free space or take another folder, "
        "then run the same command again"
    )
