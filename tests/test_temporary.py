"""Files are whole or not there, whoever writes and whoever cleans up at the same time (exact laws on files)."""

from __future__ import annotations

import errno
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

from deepcache import temporary
from deepcache.errors import DeepCacheError
from deepcache.temporary import clean, whole

NAME = "seeds-00000004-00000008.npz"
WRITER = """
import sys
from pathlib import Path
from deepcache.temporary import whole
with whole(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    sys.stdin.readline()
    file.write(b" whole")
"""
CLEANER = "import sys; from pathlib import Path; from deepcache.temporary import clean; clean(Path(sys.argv[1]))"


@contextmanager
def writer(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, in the middle of writing a file; it goes on when it is sent a line."""
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
    old = time.time() - temporary.ABANDONED_S - 10
    os.utime(path, (old, old))


def test_what_a_killed_writer_left_is_removed_and_what_another_writes_is_not(tmp_path):
    """However long it takes."""
    with writer(tmp_path / NAME) as living, writer(tmp_path / NAME) as killed:
        assert len(left(tmp_path)) == 2
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        for path in tmp_path.iterdir():
            age(path)
        clean(tmp_path)
        assert len(left(tmp_path)) == 1
        living.communicate("\n")
        assert living.returncode == 0
    assert left(tmp_path) == [NAME]
    assert (tmp_path / NAME).read_bytes() == b"half whole"


def test_a_container_with_process_numbers_of_its_own_lets_others_write(tmp_path):
    """One host name, and the writer's number is nobody's there."""
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
    """As number 1 of two containers, or two threads: each has a file of its own, and the last one stays."""
    with whole(tmp_path / NAME) as first:
        with whole(tmp_path / NAME) as second:
            assert len(left(tmp_path)) == 2
            first.write(b"first")
            second.write(b"second")
        assert (tmp_path / NAME).read_bytes() == b"second"
    assert (tmp_path / NAME).read_bytes() == b"first"
    assert left(tmp_path) == [NAME]


def test_other_machines_files_are_removed_when_they_are_old(tmp_path):
    """Their locks may not be seen from here. Files with other names are not ours."""
    new, old = (tmp_path / f".{name}.0123456789abcdef.{NAME}.tmp" for name in ("a-machine", "another.node"))
    kept = [new.name, ".a.tmp", ".b.1.c.tmp"]
    for name in (*kept, old.name):
        (tmp_path / name).write_text("half")
    age(old)
    clean(tmp_path)
    assert left(tmp_path) == sorted(kept)


def test_without_locks_files_are_removed_when_they_are_old(tmp_path):
    """As on file systems that refuse to lock."""
    with patch("fcntl.flock", side_effect=OSError(errno.ENOLCK, "No locks available")):
        with whole(tmp_path / NAME) as file:
            clean(tmp_path)
            file.write(b"whole")
        (tmp_path / f".{temporary._machine()}.0123456789abcdef.{NAME}.tmp").write_text("half")
        clean(tmp_path)
        assert len(left(tmp_path)) == 2
        for path in tmp_path.glob(".*"):
            age(path)
        clean(tmp_path)
    assert left(tmp_path) == [NAME]


def test_a_file_that_is_cleaned_before_it_is_locked_is_made_again(tmp_path):
    """The one moment in which a living writer's file looks abandoned."""
    take, cleaned = temporary._take_lock, []

    def late(file: object) -> bool:
        if not cleaned:
            cleaned.append(left(tmp_path))
            clean(tmp_path)
            assert left(tmp_path) == []
        return take(file)

    with patch.object(temporary, "_take_lock", late), whole(tmp_path / NAME) as file:
        file.write(b"whole")
    assert len(cleaned[0]) == 1
    assert (tmp_path / NAME).read_bytes() == b"whole"
    assert left(tmp_path) == [NAME]


def test_cleaners_and_writers_at_once_lose_nothing(tmp_path):
    """Ten seconds of work in a second: two threads write as a third removes whatever nobody writes."""
    done, lost = threading.Event(), []

    def write(rank: int) -> None:
        for number in range(150):
            path = tmp_path / f"{rank}-{number}.npz"
            try:
                with whole(path) as file:
                    file.write(b"whole")
            except DeepCacheError as error:
                lost.append(error)

    def remove() -> None:
        while not done.is_set():
            clean(tmp_path)

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
    with whole(tmp_path / NAME, replace=replace) as file:
        file.write(b"new")
    assert (tmp_path / NAME).read_bytes() == (b"new" if replace else b"old")
    assert left(tmp_path) == [NAME]


@pytest.mark.parametrize("place", ["fsync", "replace", "open"])
def test_the_first_error_is_told_though_the_file_cannot_be_removed_either(tmp_path, place):
    """As on a disk that has become read-only."""
    full, gone = OSError(errno.EROFS, "Read-only file system"), OSError(errno.EACCES, "Permission denied")
    owner = temporary.os if place == "fsync" else Path
    with (
        patch.object(owner, place, side_effect=full),
        patch.object(Path, "unlink", side_effect=gone),
        pytest.raises(DeepCacheError, match=r"cannot write .*: Read-only file system; free space or take another"),
        whole(tmp_path / NAME) as file,
    ):
        file.write(b"new")
    assert not (tmp_path / NAME).exists()


def test_a_name_that_is_too_long_is_one_line(tmp_path):
    with pytest.raises(DeepCacheError, match=r"cannot write .*: File name too long"), whole(tmp_path / ("x" * 240)):
        pass


def test_cleaning_a_folder_that_cannot_be_cleaned_is_no_error(tmp_path):
    path = tmp_path / f".{temporary._machine()}.0123456789abcdef.{NAME}.tmp"
    path.write_text("half")
    with patch.object(Path, "unlink", side_effect=OSError(errno.EROFS, "Read-only file system")):
        clean(tmp_path)
    assert path.exists()
    clean(tmp_path)
    assert not path.exists()
