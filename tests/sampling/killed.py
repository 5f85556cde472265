"""A program that kills two workers at random moments and starts them again, until all samples are there.

It prints JSON: whether the store equals an undisturbed store, how many kills hit a living worker, how many temporary
files they left, and whether the file of a broken variant, which writes without a temporary name, is refused.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import zipfile
from pathlib import Path
from typing import IO, Any
from unittest.mock import patch

from deepcache.errors import DeepCacheError
from deepcache.sampling import shards as shard_files
from deepcache.sampling.seeds import Worker
from deepcache.sampling.store import Store
from tests.stores import hashes, make, manifest

SEEDS, KILLS, WORKERS, SLOW_S = range(40), 20, 2, 0.02
REFUSED = 2  # a worker's exit code


def work(folder: Path, worker: Worker) -> None:
    """Fill a store with made-up samples, which need no model, on a disk that is slow."""

    class Slow(zipfile.ZipFile):
        def __init__(self, *arguments: Any) -> None:
            time.sleep(SLOW_S * (len(arguments) == 2))  # a file to write
            super().__init__(*arguments)

    with patch.object(zipfile, "ZipFile", Slow):
        Store.create(folder, manifest(shard_size=2)).fill(SEEDS, make, worker)


def start(folder: Path, worker: Worker) -> int:
    """Start a worker by a fork, which saves the seconds of importing torch."""
    if number := os.fork():
        return number
    try:
        work(folder, worker)
    except DeepCacheError:
        os._exit(REFUSED)
    os._exit(0)


def disturbed(folder: Path, life_s: float) -> dict[str, Any]:
    """Kill living workers after random times, at least 20 times, then let all finish; stop when a worker refuses."""
    rng, kills, left = random.Random(0), 0, 0
    while True:
        numbers = [start(folder, Worker(rank, WORKERS)) for rank in range(WORKERS)]
        for number in numbers if kills < KILLS else ():
            time.sleep(rng.uniform(0, life_s))
            os.kill(number, signal.SIGKILL)
        ends = [ended(number) for number in numbers]
        left += len(list(folder.glob(".*.tmp")))
        kills += ends.count(-signal.SIGKILL)
        if REFUSED in ends or (not any(ends) and kills >= KILLS):
            return {"kills": kills, "left": left, "is_refused": REFUSED in ends, "hashes": hashes(folder)}
        if not any(ends):  # they were faster than the kills
            for path in folder.glob("*.npz"):
                path.unlink()


def ended(number: int) -> int:
    """Return a process's exit code, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def in_place(path: Path) -> IO[bytes]:
    """Write a file in its place, without a temporary name, and be killed at once: a broken `files.whole_file`."""
    with path.open("wb"):
        os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def is_found_out(folder: Path) -> bool:
    """Return whether a worker refuses the file that a killed worker has left in its place."""
    with patch.object(shard_files, "whole_file", in_place):
        assert ended(start(folder, Worker())) == -signal.SIGKILL
    return ended(start(folder, Worker())) == REFUSED


def main(folder: Path) -> dict[str, Any]:
    begin = time.monotonic()
    work(folder / "alone", Worker())
    life_s = 3 * (time.monotonic() - begin) / len(SEEDS)  # in which a worker finishes a file or two
    expected = hashes(folder / "alone")
    honest = disturbed(folder / "killed", life_s)
    return {
        "files": len(expected),
        "is_equal": honest.pop("hashes") == expected,
        **honest,
        "broken_is_refused": is_found_out(folder / "broken"),
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
