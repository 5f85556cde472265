"""Files from elsewhere are read within bounds or refused in one line; files of ours are written whole or not at all."""

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
from typing import IO, Any

import yaml

from deepcache.errors import DeepCacheError, first_line, on_one_line, shown

MOST_BYTES = 64 << 20  # COCO's captions_val2014.json has 32 MiB
MOST_DEEP = 64  # levels of lists and objects inside each other
MOST_LISTS = 2_000_000  # lists and objects; COCO's captions have 250,000
MOST_DIGITS = 20  # of a whole number; 2^64 has as many
MOST_BYTES_OF_YAML = 64 << 10  # CompVis' configurations have 3 KiB, and PyYAML reads 100 KiB a second
ABANDONED_S = 3600.0  # age in seconds; writing a temporary file takes seconds
_TOO_DEEP = f"which has values more than {MOST_DEEP} deep within each other; pass another file"
_SURROGATE = re.compile("[\ud800-\udfff]")
_TEMPORARY = re.compile(r"\.(?P<machine>.+)\.(?P<token>[0-9a-f]+)\.(?P<final>[^.]+\.[^.]+)\.tmp")


def read_bytes(path: str | Path, what: str, *, most_bytes: int = MOST_BYTES) -> bytes:
    """Return the bytes of a regular file.

    Args:
        what: what the file is expected to be, for the error message, e.g. "a plan's JSON".
        most_bytes: the largest size in bytes that is read.

    Raises:
        DeepCacheError: `path` is no path, or the file does not exist, cannot be read, is larger than `most_bytes`, or
            is a folder, a pipe or a device.
    """
    path = as_path(path, what)
    try:
        if not stat.S_ISREG(mode := os.stat(path).st_mode):
            kind = "folder" if stat.S_ISDIR(mode) else "pipe or a device"
            raise refused(path, what, f"which is a {kind}; pass a file")
        with path.open("rb") as file:
            found = file.read(most_bytes + 1)
    except (OSError, ValueError) as error:  # a ValueError is about a null character in the path
        reason = getattr(error, "strerror", None) or first_line(error)
        raise refused(path, what, f"which cannot be read ({reason}); correct the path") from error
    if len(found) > most_bytes:
        raise refused(path, what, f"which has more than {most_bytes:,} bytes; pass another file")
    return found


def read_text(path: str | Path, what: str, *, most_bytes: int = MOST_BYTES) -> str:
    """Return the text of a UTF-8 file without the byte order mark that some editors write; refuse other encodings."""
    found = read_bytes(path, what, most_bytes=most_bytes)
    if found.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise refused(path, what, "which is in UTF-16; save it in UTF-8")
    try:
        return found.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"which is not in UTF-8 (byte {error.start} is 0x{found[error.start]:02x}); save it in UTF-8"
        raise refused(path, what, reason) from error


def read_json(path: str | Path, what: str, *, most_bytes: int = MOST_BYTES) -> Any:
    """Return the value of a JSON file, of any types; the file is refused as by `read_text` and `json_value`."""
    return json_value(read_text(path, what, most_bytes=most_bytes), what, path)


def json_value(text: str, what: str, source: object) -> Any:
    """Return the value of a JSON text, of any types, NaN included; an error names `what` was expected in `source`.

    Raises:
        DeepCacheError: the text is no JSON, nests lists and objects deeper than `MOST_DEEP`, has more than `MOST_LISTS`
            of them, has a whole number of more than `MOST_DIGITS` digits, or has half a character (a lone surrogate).
    """
    if text.count("[") + text.count("{") > MOST_LISTS:
        raise refused(source, what, f"which has more than {MOST_LISTS:,} lists and objects; pass another file")
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise refused(source, what, _TOO_DEEP) from error
    except ValueError as error:  # JSONDecodeError, or a whole number with too many digits for int
        raise refused(source, what, f"which is no JSON ({first_line(error)})") from error
    level = [found]  # the value is checked level by level, because recursion would overflow the stack
    for _ in range(MOST_DEEP + 1):
        if any(type(value) is int and abs(value) >= 10**MOST_DIGITS for value in level):
            raise refused(source, what, f"which has a whole number of more than {MOST_DIGITS} digits")
        if any(type(value) is str and not value.isascii() and _SURROGATE.search(value) for value in level):
            raise refused(source, what, "which has half a character (a lone surrogate)")
        parts: list[Any] = [value for value in level if isinstance(value, list)]
        parts += [pair for value in level if isinstance(value, dict) for pair in value.items()]
        level = [value for part in parts for value in part]
        if not level:
            return found
    raise refused(source, what, _TOO_DEEP)


def read_yaml(path: str | Path, what: str) -> Any:
    """Return the value of a YAML file, of any plain types, nested no deeper than `MOST_DEEP`.

    An alias is refused, since a few aliases can stand for gigabytes or for a value that contains itself.
    """
    text = read_text(path, what, most_bytes=MOST_BYTES_OF_YAML)
    try:
        return yaml.load(text, _PlainLoader)
    except _NotPlainError as error:
        raise refused(path, what, str(error)) from error
    except Exception as error:  # PyYAML raises half a dozen types on texts such as `!!bool 2`
        raise refused(path, what, f"which is no YAML ({on_one_line(error)})") from error


def as_path(path: object, what: str) -> Path:
    """Return a path as a `Path`; a value that is neither a string nor a path is refused."""
    if not isinstance(path, (str, os.PathLike)):
        raise DeepCacheError(f"expected {what} and therefore a path, got {shown(path)}")
    return Path(path)


def refused(source: object, what: str, reason: str) -> DeepCacheError:
    """Return the error that `what` was expected in `source`; `reason` says why and begins with "which"."""
    name = str(source)
    return DeepCacheError(f"expected {what} in {name if name.isprintable() else ascii(name)}, {reason}")


class _NotPlainError(Exception):
    """A YAML text has more than plain values; the message is the reason of a refusal."""


class _PlainLoader(yaml.SafeLoader):  # type: ignore[misc]
    """Loads plain YAML values of bounded depth, and refuses aliases."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise _NotPlainError("which has an alias (*name); write its value in its place")
        if self.depth > MOST_DEEP:
            raise _NotPlainError(_TOO_DEEP)
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


def write_text(path: Path, text: str) -> Path:
    """Write a text in UTF-8 by `whole_file` into a folder that is made if need be, and return the path."""
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

    Afterwards the file is on the disk, not in a cache alone. No other writer chooses the name of the temporary file.
    The writer holds a lock on the file until the file is in its place. The operating system releases the lock when the
    writer ends, even by `kill -9`, so `remove_abandoned` can tell what is being written from what a writer left behind.

    Args:
        path: where the file goes; an older file there is replaced, or stays if `replace` is False.

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
        with suppress(OSError):  # not all systems write a folder's list of names; the file itself is in its place
            number = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(number)
            finally:
                os.close(number)
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
            # an error tells that the file is gone or another user's, or that the folder is read-only
            with suppress(OSError), path.open("r+b") as file:  # NFS locks only files that are open for writing
                is_ours = _take_lock(file)
                is_old = time.time() - os.fstat(file.fileno()).st_mtime > ABANDONED_S
                if (is_ours and found["machine"] == _machine()) or (is_ours is not False and is_old):
                    path.unlink()


def _created(path: Path) -> tuple[Path, IO[bytes]]:
    """Create a temporary file for `path`, open and locked."""
    while True:
        temporary = path.with_name(f".{_machine()}.{secrets.token_hex(8)}.{path.name}.tmp")
        file = temporary.open("xb")
        if _take_lock(file) is not False and temporary.exists():
            return temporary, file
        file.close()  # `remove_abandoned` saw the file before it was locked, and removed it
        temporary.unlink(missing_ok=True)


def _take_lock(file: IO[bytes]) -> bool | None:
    """Try to lock an open file; return False if another process holds the lock, and None where there are no locks."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):  # Windows, or a file system without locks
        return None
    return True


@cache
def _machine() -> str:
    """Return a name of this machine since its last start; containers on one machine share the name."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _unwritable(path: Path, error: OSError) -> DeepCacheError:
    advice = "free space or take another folder, then run the same command again"
    return DeepCacheError(f"cannot write {path}: {error.strerror or error}; {advice}")
