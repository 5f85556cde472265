"""Files from elsewhere are read as json and yaml read them, or refused in one line; files of ours are written whole.

All laws are exact, and hold for writers and cleaners that run at the same time.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml

from deepcache import files
from deepcache.errors import DeepCacheError, first_line, shown
from deepcache.files import (
    MOST_DEEP,
    read_bytes,
    read_json,
    read_yaml,
    remove_abandoned,
    whole_file,
    write_text,
)

DEEP = 20_000
NAME = "seeds-00000004-00000008.npz"
WRITER = """
import sys
from pathlib import Path
from deepcache.files import whole_file
with whole_file(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    sys.stdin.readline()
    file.write(b" whole")
"""
CLEANER = """
import sys
from pathlib import Path
from deepcache.files import remove_abandoned
remove_abandoned(Path(sys.argv[1]))
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


def refusal(read, path) -> str:
    with pytest.raises(DeepCacheError) as caught:
        read(path, "a list")
    assert str(caught.value).startswith("expected a list")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(path))
    return str(caught.value)


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    "value", [None, 1, 2**64, -1.5, "été \U0001f600", [], {"a": [{"b": [True]}], "": 1e300}, [0] * 100_000]
)
def test_what_json_and_yaml_write_is_read(path, value):
    path.write_text(json.dumps(value))
    assert read_json(path, "a list") == value
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8-sig")
    assert read_json(path, "a list") == value
    if not isinstance(value, list):
        path.write_text(yaml.safe_dump(value))
        assert read_yaml(path, "a list") == value


@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_values_may_lie_so_deep_within_each_other_and_no_deeper(path, read):
    path.write_text(nested(MOST_DEEP))
    read(path, "a list")
    for depth in (MOST_DEEP + 2, 900, DEEP):
        path.write_text(nested(depth))
        assert f"more than {MOST_DEEP} deep" in refusal(read, path)
    path.write_text('{"a":' * 10_000 + "1" + "}" * 10_000)  # more is too large for a YAML file
    assert f"more than {MOST_DEEP} deep" in refusal(read, path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"9" * 5_000, "no JSON"),
        (b"[-" + b"9" * 21 + b"]", "more than 20 digits"),
        (b'{"a": "\\ud800"}', "half a character"),
        (b'{"\\udfff": 1}', "half a character"),
        (b'["\xff"]', "byte 2 is 0xff"),
        ("[]".encode("utf-16"), "in UTF-16"),
        ("[]".encode("utf-16-be"), "no JSON"),
        (b"[[]," + b"{}," * 2_000_000 + b"1]", "more than 2,000,000 lists"),
    ],
)
def test_what_is_no_plain_json_is_refused(path, content, said):
    path.write_bytes(content)
    assert said in refusal(read_json, path)


@pytest.mark.parametrize(
    "content",
    [
        "a: [",
        "!!python/object/apply:os.system [x]",
        "!!bool 2",
        "!!int ''",
        "!!timestamp x",
        "? [a]\n: 1",
        "2001-13-45",
    ],
)
def test_what_is_no_plain_yaml_is_refused(path, content):
    path.write_text(content)
    assert "no YAML" in refusal(read_yaml, path)


def test_yaml_whose_aliases_stand_for_more_is_refused(path):
    lines = ["a0: &a0 [x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    for content in ("\n".join(lines), "a: &a [*a]", "a: &a {b: 1}\nc: {<<: *a}"):
        assert len(content) < 1_000
        path.write_text(content)
        assert "has an alias" in refusal(read_yaml, path)


@pytest.mark.parametrize("read", [read_bytes, read_json, read_yaml])
def test_what_is_no_file_is_refused_at_once(tmp_path, path, read):
    assert "cannot be read (No such file" in refusal(read, path)
    assert "is a folder" in refusal(read, tmp_path)
    os.mkfifo(path)
    assert "a pipe or a device" in refusal(read, path)
    assert "a pipe or a device" in refusal(read, "/dev/zero")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "cannot be read" in refusal(read, tmp_path / "loop")
    assert "cannot be read" in refusal(read, "a\0b")
    assert "cannot be read" in refusal(read, "a" * 5_000)
    assert "\\n" in refusal(read, tmp_path / "two\nlines")
    assert "therefore a path, got None" in refusal(read, None)


def test_a_file_that_is_larger_is_refused_and_read_no_further(path):
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a hole: no disk holds it
    for read in (read_bytes, read_json, read_yaml):
        assert "has more than" in refusal(read, path)
    path.write_text("[1]")
    assert read_json(path, "a list", most_bytes=3) == [1]
    with pytest.raises(DeepCacheError, match="more than 2 bytes"):
        read_json(path, "a list", most_bytes=2)


def test_foreign_values_and_messages_are_short_and_on_one_line():
    assert shown([1, "a"]) == "[1, 'a']"
    assert shown(10**5_000) == "a int that is too large to show"
    assert shown("x" * 10_000).endswith("...")
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(ValueError()) == "ValueError"


@contextmanager
def writer(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Start another process that stops in the middle of writing a file, and goes on when it is sent a line."""
    command = [sys.executable, "-c", WRITER, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "writing\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def age(path: Path) -> None:
    old = time.time() - files.ABANDONED_S - 10
    os.utime(path, (old, old))


def test_what_a_killed_writer_left_is_removed_and_what_another_writes_is_not(tmp_path):
    """This holds however long a writer takes."""
    with writer(tmp_path / NAME) as living, writer(tmp_path / NAME) as killed:
        assert len(left(tmp_path)) == 2
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        for path in tmp_path.iterdir():
            age(path)
        remove_abandoned(tmp_path)
        assert len(left(tmp_path)) == 1
        living.communicate("\n")
        assert living.returncode == 0
    assert left(tmp_path) == [NAME]
    assert (tmp_path / NAME).read_bytes() == b"half whole"


def test_a_container_with_process_numbers_of_its_own_lets_others_write(tmp_path):
    """The container has the same host name, and no process in it has the writer's number."""
    own_numbers = ["unshare", "--pid", "--fork", sys.executable, "-c"]
    if subprocess.run([*own_numbers, "pass"], capture_output=True, check=False).returncode:
        pytest.skip("a namespace of its own needs root")
    with writer(tmp_path / NAME) as living:
        gone = [*own_numbers, f"import os; os.kill({living.pid}, 0)"]
        assert b"ProcessLookupError" in subprocess.run(gone, capture_output=True, check=False).stderr
        subprocess.run([*own_numbers, CLEANER, str(tmp_path)], check=True)
        living.communicate("\n")
        assert living.returncode == 0
    assert (tmp_path / NAME).read_bytes() == b"half whole"


def test_writers_with_one_process_number_do_not_meet(tmp_path):
    """Processes with one number, as in two containers, have temporary files of their own, and the last file stays."""
    with whole_file(tmp_path / NAME) as first:
        with whole_file(tmp_path / NAME) as second:
            assert len(left(tmp_path)) == 2
            first.write(b"first")
            second.write(b"second")
        assert (tmp_path / NAME).read_bytes() == b"second"
    assert (tmp_path / NAME).read_bytes() == b"first"
    assert left(tmp_path) == [NAME]


def test_other_machines_files_are_removed_when_they_are_old(tmp_path):
    """Locks of other machines may be invisible from here. Files with other names are not ours."""
    new, old = (tmp_path / f".{name}.0123456789abcdef.{NAME}.tmp" for name in ("a-machine", "another.node"))
    kept = [new.name, ".a.tmp", ".b.1.c.tmp"]
    for name in (*kept, old.name):
        (tmp_path / name).write_text("half")
    age(old)
    remove_abandoned(tmp_path)
    assert left(tmp_path) == sorted(kept)


def test_without_locks_files_are_removed_when_they_are_old(tmp_path):
    """Some file systems refuse to lock."""
    with patch("fcntl.flock", side_effect=OSError(errno.ENOLCK, "No locks available")):
        with whole_file(tmp_path / NAME) as file:
            remove_abandoned(tmp_path)
            file.write(b"whole")
        (tmp_path / f".{files._machine()}.0123456789abcdef.{NAME}.tmp").write_text("half")
        remove_abandoned(tmp_path)
        assert len(left(tmp_path)) == 2
        for path in tmp_path.glob(".*"):
            age(path)
        remove_abandoned(tmp_path)
    assert left(tmp_path) == [NAME]


def test_a_file_that_is_cleaned_before_it_is_locked_is_made_again(tmp_path):
    """Between its creation and its lock, a living writer's file looks abandoned."""
    take, cleaned = files._take_lock, []

    def late(file: object) -> bool:
        if not cleaned:
            cleaned.append(left(tmp_path))
            remove_abandoned(tmp_path)
            assert left(tmp_path) == []
        return take(file)

    with patch.object(files, "_take_lock", late), whole_file(tmp_path / NAME) as file:
        file.write(b"whole")
    assert len(cleaned[0]) == 1
    assert (tmp_path / NAME).read_bytes() == b"whole"
    assert left(tmp_path) == [NAME]


def test_cleaners_and_writers_at_once_lose_nothing(tmp_path):
    """Two threads write while a third removes abandoned files all the time."""
    done, lost = threading.Event(), []

    def write(rank: int) -> None:
        for number in range(150):
            path = tmp_path / f"{rank}-{number}.npz"
            try:
                with whole_file(path) as file:
                    file.write(b"whole")
            except DeepCacheError as error:
                lost.append(error)

    def remove() -> None:
        while not done.is_set():
            remove_abandoned(tmp_path)

    cleaner, writers = threading.Thread(target=remove), [threading.Thread(target=write, args=(i,)) for i in range(2)]
    for thread in (cleaner, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    cleaner.join()
    assert not lost
    assert len(left(tmp_path)) == 300
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {b"whole"}


@pytest.mark.parametrize("replace", [True, False])
def test_a_file_stands_in_its_place_and_one_that_is_there_stays_if_asked(tmp_path, replace):
    (tmp_path / NAME).write_bytes(b"old")
    with whole_file(tmp_path / NAME, replace=replace) as file:
        file.write(b"new")
    assert (tmp_path / NAME).read_bytes() == (b"new" if replace else b"old")
    assert left(tmp_path) == [NAME]


@pytest.mark.parametrize("place", ["fsync", "replace", "open"])
def test_the_first_error_is_told_though_the_file_cannot_be_removed_either(tmp_path, place):
    """This happens on a disk that has become read-only."""
    full, gone = OSError(errno.EROFS, "Read-only file system"), OSError(errno.EACCES, "Permission denied")
    owner = os if place == "fsync" else Path
    with (
        patch.object(owner, place, side_effect=full),
        patch.object(Path, "unlink", side_effect=gone),
        pytest.raises(DeepCacheError, match=r"cannot write .*: Read-only file system; free space or take another"),
        whole_file(tmp_path / NAME) as file,
    ):
        file.write(b"new")
    assert not (tmp_path / NAME).exists()


def test_a_name_that_is_too_long_is_one_line(tmp_path):
    for path in (tmp_path / ("x" * 240), tmp_path / "new" / ("x" * 300) / "text.md"):
        with pytest.raises(DeepCacheError, match=r"cannot write .*: File name too long"):
            write_text(path, "a text")


def test_a_text_is_written_in_utf8_into_a_folder_that_is_made(tmp_path):
    write_text(tmp_path / "a" / "b" / "text.md", "été\r\n")
    assert (tmp_path / "a" / "b" / "text.md").read_bytes() == "été\r\n".encode()


def test_cleaning_a_folder_that_cannot_be_cleaned_is_no_error(tmp_path):
    path = tmp_path / f".{files._machine()}.0123456789abcdef.{NAME}.tmp"
    path.write_text("half")
    with patch.object(Path, "unlink", side_effect=OSError(errno.EROFS, "Read-only file system")):
        remove_abandoned(tmp_path)
    assert path.exists()
    remove_abandoned(tmp_path)
    assert not path.exists()
