"""Every reader of a file from elsewhere, run in a process of its own, in bounded time and memory.

`Readers` forks the process, which saves the seconds of the imports, sends it a reader's name and a path, and returns
what the reader did with the file. It may be killed at any time, by the timer of its processor time or by the test.
"""

from __future__ import annotations

import gc
import os
import resource
import select
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

SECONDS = 2.0  # of processor time for a file, so that a busy machine changes nothing
WAIT_S = 20.0  # of any time, for a reader that waits and does not compute
MEMORY = 1 << 30  # bytes that a reader may add to what the process has before
LONGEST = 2_000  # characters that a refusal may have


class Readers:
    """A fork of this process with the readers of a table, which is forked again after it was killed.

    Args:
        table: the readers by name.
        seconds: of processor time that a reader may take.
    """

    def __init__(self, table: dict[str, Callable[[Path], Any]], seconds: float = SECONDS) -> None:
        self._table, self._seconds = table, seconds
        self._number = 0  # of the fork; 0 while there is none
        self._asked: IO[str]
        self._said: IO[str]

    def read(self, name: str, path: Path, *, wait_s: float = WAIT_S) -> str:
        """Return what a reader does with a path: "answered", "refused: MESSAGE", or what is wrong with the reader."""
        if not self._number:
            self._start()
        print(f"{name}\t{path}", file=self._asked, flush=True)
        is_heard, _, _ = select.select([self._said], [], [], wait_s)
        if not is_heard:
            self.close()
            return f"wrong: it waited for {wait_s} s"
        if said := self._said.readline():
            return said.removesuffix("\n")
        code = self.close()
        return (
            f"wrong: it took more than {self._seconds} s" if code == -signal.SIGPROF else f"wrong: it died with {code}"
        )

    def close(self) -> int:
        """End the fork, and return its exit code, or minus the signal that killed it."""
        if not self._number:
            return 0
        with suppress(ProcessLookupError):
            os.kill(self._number, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(self._number, 0)[1])
        self._number = 0
        self._asked.close()
        self._said.close()
        return code

    def _start(self) -> None:
        (asked, ask), (hear, say) = os.pipe(), os.pipe()
        self._number = os.fork()
        if not self._number:
            os.close(ask)
            os.close(hear)
            nothing = os.open(os.devnull, os.O_RDWR)  # what a library prints must not stand among the tests' output
            for stream in range(3):
                os.dup2(nothing, stream)
            gc.freeze()  # a collection would copy the pages of all that the tests before have left
            try:
                serve(self._table, self._seconds, os.fdopen(asked), os.fdopen(say, "w"))
            finally:
                os._exit(1)
        os.close(asked)
        os.close(say)
        self._asked, self._said = os.fdopen(ask, "w"), os.fdopen(hear)


def serve(readers: dict[str, Callable[[Path], Any]], seconds: float, asked: IO[str], said: IO[str]) -> None:
    """Take a reader's name and a path from each line, and write a line of what the reader did."""
    for line in asked:
        name, path = line.rstrip("\n").split("\t", 1)
        print(outcome(readers[name], Path(path), seconds), file=said, flush=True)


def outcome(read: Callable[[Path], Any], path: Path, seconds: float) -> str:
    """Run a reader within bounds of time and memory, and return what it did."""
    from deepcache.errors import DeepCacheError

    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, most))
    signal.setitimer(signal.ITIMER_PROF, seconds)  # when the time is over, the process ends, also within C code
    try:
        read(path)
        said = "answered"
    except DeepCacheError as error:
        said = f"refused: {error}"
        if "\n" in said or len(said) > LONGEST:
            said = f"wrong: {len(said)} characters, {said.count(chr(10)) + 1} lines: {said[:LONGEST]!r}"
        if _is_of_memory(error):
            said = f"wrong: it took more than {MEMORY} bytes, and then said {said[:LONGEST]}"
    except BaseException as error:
        said = f"wrong: {type(error).__name__}: {str(error)[:LONGEST]!r}, {_place(error)}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    return said.encode("ascii", "backslashreplace").decode()


def _is_of_memory(error: BaseException | None) -> bool:
    """Whether a refusal was made of a failed allocation, which would not have failed without this test's limit."""
    while error is not None:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _place(error: BaseException) -> str:
    import traceback

    own = [frame for frame in traceback.extract_tb(error.__traceback__) if "deepcache" in frame.filename]
    return f"at {own[-1].filename}:{own[-1].lineno}" if own else "outside of the package"


def package() -> dict[str, Callable[[Path], Any]]:
    """Return the package's readers by name; each takes a file, or a file in the folder that it reads."""
    import numpy as np

    from deepcache.metrics import reference
    from deepcache.metrics.fidelity import quality
    from deepcache.metrics.images import Images, image_set
    from deepcache.metrics.statistics import Features, Statistics
    from deepcache.models.architectures import architecture, skeleton
    from deepcache.models.checkpoint import on_meta, weights
    from deepcache.models.ldm_config import ldm_networks, read_config
    from deepcache.models.loading import load
    from deepcache.plan import CachePlan
    from deepcache.results import record
    from deepcache.results.gate import gate
    from deepcache.sampling.conditions import prompts_in
    from deepcache.sampling.shards import Shard
    from deepcache.sampling.store import Store

    def statistics(images: Images) -> Statistics:
        """Gather statistics of mean colours, three features of each image."""
        found = Statistics()
        for part in images.split(4):
            colours = part.mean(dim=(2, 3)).numpy()
            found.update(Features(colours, colours, np.full((len(part), 2), 0.5, np.float32)))
        return found

    own = np.random.default_rng(0).uniform(size=(9, 3, 2, 2)).astype(np.float32)

    def measured(path: Path) -> None:
        import torch

        quality(statistics(torch.from_numpy(own)), reference.find(path, statistics))

    def networks(path: Path) -> None:
        for network in ldm_networks(read_config(path)).values():
            on_meta(*network)

    def store(path: Path) -> None:
        found = Store.open(path.parent)
        found.images(found.seeds())

    def gated(path: Path) -> None:
        baseline = path.with_name("baseline.json")
        str(gate(record.read(baseline if baseline.exists() else path), record.read(path)))

    return {
        "prompts": prompts_in,
        "picture": lambda path: list(image_set(path.parent).split(4)),
        "reference": measured,
        "checkpoint": weights,
        "yaml": networks,
        "architecture": lambda path: architecture(str(path)).cost(),
        "skeleton": lambda path: skeleton(str(path.parent)),
        "index": lambda path: load(path.parent),
        "part": lambda path: load(path.parent.parent),
        "plan": CachePlan.load,
        "store": store,
        "shards": lambda path: Shard(path.parent, range(4), Store.open(path.parent).manifest).read(),
        "records": record.read,
        "gate": gated,
    }


def planted() -> dict[str, Callable[[Path], Any]]:
    """Return readers that each break the law in another way, to test the test."""

    def hoard(_: Path) -> None:
        from deepcache.errors import DeepCacheError

        try:
            bytearray(2 * MEMORY)
        except MemoryError as error:
            raise DeepCacheError("too much") from error

    def babble(_: Path) -> None:
        from deepcache.errors import DeepCacheError

        raise DeepCacheError("x" * 2 * LONGEST)

    return {
        "answers": lambda _: None,
        "hangs": lambda _: [None for _ in iter(int, 1)],
        "hangs in c": lambda _: pow(3, 10**8),
        "waits": lambda path: path.read_bytes(),
        "hoards": hoard,
        "raises": lambda _: {}["key"],
        "exits": lambda _: os._exit(0),
        "babbles": babble,
    }
