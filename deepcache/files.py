"""Files from elsewhere: read whole, within bounds, or refused in one line. Nobody vouches for what stands in them."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from deepcache.errors import DeepCacheError, first_line, on_one_line, shown

MOST_BYTES = 64 << 20  # COCO's captions_val2014.json has 32 MiB
MOST_DEEP = 64  # lists and objects within each other
MOST_LISTS = 2_000_000  # lists and objects; COCO's captions have 250,000
MOST_DIGITS = 20  # of a whole number; 2^64 has as many
MOST_BYTES_OF_YAML = 64 << 10  # CompVis' configurations have 3 KiB, and PyYAML reads 100 KiB a second


def read_bytes(path: str | Path, what: str, *, most_bytes: int = MOST_BYTES) -> bytes:
    """The bytes of a regular file.

    Args:
        path: the file.
        what: what it is expected to be, for the error, e.g. "a plan's JSON".
        most_bytes: the largest size that is read.

    Raises:
        DeepCacheError: no path, no such file, one that cannot be read, that is larger, or that is no regular file: a
            folder, or a pipe or a device, which may never end.
    """
    try:
        with _opened(path, what) as file:
            found = file.read(most_bytes + 1)
    except (OSError, ValueError) as error:  # a ValueError is about a null character in the path
        raise refused(path, what, f"which cannot be read ({_reason(error)}); correct the path") from error
    if len(found) > most_bytes:
        raise refused(path, what, f"which has more than {most_bytes:,} bytes; pass another file")
    return found


def read_text(path: str | Path, what: str, *, most_bytes: int = MOST_BYTES) -> str:
    """The text of a file in UTF-8, without the byte order mark that some editors put before it.

    Raises:
        DeepCacheError: as `read_bytes`, and for a file in another encoding.
    """
    found = read_bytes(path, what, most_bytes=most_bytes)
    try:
        return found.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"which is not in UTF-8 (byte {error.start} is 0x{found[error.start]:02x}); save it in UTF-8"
        raise refused(path, what, reason) from error


def read_json(path: str | Path, what: str, *, most_bytes: int = MOST_BYTES) -> Any:
    """The value of a JSON file; its types are the caller's to check, NaN and infinity included.

    Args:
        path: the file.
        what: what it is expected to be, for the error, e.g. "a plan's JSON".
        most_bytes: the largest size that is read.

    Raises:
        DeepCacheError: as `read_text` and `json_value`.
    """
    return json_value(read_text(path, what, most_bytes=most_bytes), what, path)


def json_value(text: str, what: str, source: object) -> Any:
    """The value of a JSON text; `what` and `source` name it in the error.

    Raises:
        DeepCacheError: no JSON; lists and objects more than `MOST_DEEP` within each other or more than `MOST_LISTS`
            in all; a whole number of more than `MOST_DIGITS` digits; half a character (a lone surrogate).
    """
    if text.count("[") + text.count("{") > MOST_LISTS:
        raise refused(source, what, f"which has more than {MOST_LISTS:,} lists and objects; pass another file")
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise _too_deep(source, what) from error
    except ValueError as error:  # JSONDecodeError, or int's of too many digits
        raise refused(source, what, f"which is no JSON ({first_line(error)})") from error
    _require_plain(found, what, source)
    return found


def read_yaml(path: str | Path, what: str, *, most_bytes: int = MOST_BYTES_OF_YAML) -> Any:
    """The value of a YAML file of plain values without aliases; its types are the caller's to check.

    Raises:
        DeepCacheError: as `read_text`, and for a text that is no YAML, one with an alias (few of which stand for
            gigabytes, or for a value that contains itself), or with values more than `MOST_DEEP` within each other.
    """
    text = read_text(path, what, most_bytes=most_bytes)
    try:
        return yaml.load(text, _PlainLoader)
    except _TooDeepError as error:
        raise _too_deep(path, what) from error
    except _AliasError as error:
        raise refused(path, what, "which has an alias (*name); write its value in its place") from error
    except Exception as error:  # of a text such as `!!bool 2` PyYAML raises half a dozen kinds
        raise refused(path, what, f"which is no YAML ({on_one_line(error)})") from error


def refused(source: object, what: str, reason: str) -> DeepCacheError:
    """The error that `source` is not what was expected; the reason begins with "which"."""
    name = str(source)
    return DeepCacheError(f"expected {what} in {name if name.isprintable() else ascii(name)}, {reason}")


class _TooDeepError(Exception):
    pass


class _AliasError(Exception):
    pass


class _PlainLoader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML's plain values, of bounded depth and without aliases."""

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


def _opened(path: str | Path, what: str) -> BinaryIO:
    if not isinstance(path, (str, os.PathLike)):
        raise DeepCacheError(f"expected {what} and therefore a path, got {shown(path)}")
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise refused(path, what, "which is a folder; pass a file")
    if not stat.S_ISREG(mode):
        raise refused(path, what, "which is a pipe or a device; pass a file")
    return open(path, "rb")


def _require_plain(found: Any, what: str, source: object) -> None:
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


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or first_line(error)
