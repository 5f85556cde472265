"""How far a worker is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm

EVERY_S = 30.0


class Progress:
    """Of one worker's images, on stderr, inside a `with` block.

    Args:
        total: images to come.
        name: the worker's.
        position: of its bar among those on the same terminal.
    """

    def __init__(self, total: int, name: str, position: int = 0) -> None:
        self._bar = tqdm(total=total, desc=name, unit="image", position=position, disable=None, leave=False)
        self._total, self._name, self._done = total, name, 0
        self._begin = self._told = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._bar.close()

    def advance(self, count: int) -> None:
        """Some more are done."""
        self._bar.update(count)
        self._done += count
        now = time.monotonic()
        if self._bar.disable and now - self._told >= EVERY_S:
            self._told = now
            rate = self._done / (now - self._begin)
            self.say(f"{self._name}: {self._done} of {self._total} images, {rate:.3g} images/s")

    def say(self, line: str) -> None:
        """A line above the bar."""
        tqdm.write(line, file=sys.stderr)
