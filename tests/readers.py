"""Every reader of a file from elsewhere, run in a process of its own, in bounded time and memory.

`Readers` starts the process, sends it a reader's name and a path, and returns what the reader did with the file.
`python readers.py TABLE SECONDS` is the process. It may be killed at any time, by the timer of its processor time or by
the test.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS = 2.0  # of processor time for a file, so that a busy machine changes nothing
WAIT_S = 20.0  # of any time, for a reader that waits and does not compute
MEMORY = 1 << 30  # bytes that a reader may add to what the process has before
LONGEST = 2_000  # characters that a refusal may have


class Readers:
    """The process with the readers of a table, which is started again after it was killed.

    Args:
        table: the name of the function below that returns the readers.
        seconds: of processor time that a reader may take.
    """

    def __init__(self, table: str = "package", seconds: float = SECONDS) -> None:
        self._table, self._seconds = table, seconds
        self._process: subprocess.Popen[bytes] | None = None

    def read(self, name: str, path: Path, *, wait_s: float = WAIT_S) -> str:
        """Return what a reader does with a path: "answered", "refused: MESSAGE", or what is wrong with the reader."""
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{name}\t{path}\n".encode())
        process.stdin.flush()
        is_heard, _, _ = select.select([process.stdout], [], [], wait_s)
        if not is_heard:
            self.close()
            return f"wrong: it waited for {wait_s} s"
        said = process.stdout.readline().decode()
        if said:
            return said.removesuffix("\n")
        code = process.wait()
        self.close()
        return (
            f"wrong: it took more than {self._seconds} s" if code == -signal.SIGPROF else f"wrong: it died with {code}"
        )

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._process = None

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
            command = [sys.executable, __file__, self._table, str(self._seconds)]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
            assert self._process.stdout is not None
            assert self._process.stdout.readline() == b"ready\n"
        return self._process


def serve(readers: dict[str, Callable[[Path], Any]], seconds: float) -> None:
    """Take a reader's name and a path from each line of stdin, and write what the reader did to a line of stdout."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not stand among the answers
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        name, path = line.rstrip("\n").split("\t", 1)
        print(outcome(readers[name], Path(path), seconds), file=out, flush=True)


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


if __name__ == "__main__":
    serve({"package": package, "planted": planted}[sys.argv[1]](), float(sys.argv[2]))
