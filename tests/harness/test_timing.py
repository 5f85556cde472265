"""Laws of timing: rounds take turns, and a machine that becomes steadily slower changes no speedup."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bench.harness.timing import Timing, take_turns


class Rounds:
    """A stand-in for pytest-benchmark's fixture: each round runs `setup`, then `target`."""

    def __init__(self, *, enabled: bool = True) -> None:
        self.enabled = enabled

    def pedantic(self, target: Callable[[], Any], setup: Callable[[], Any], rounds: int) -> None:
        for _ in range(rounds if self.enabled else 1):
            setup()
            target()


@pytest.mark.parametrize(
    ("clock", "turns", "each", "expected"),
    [
        (Rounds(), 1, 1, "uc"),
        (Rounds(), 2, 1, "cuc"),
        (Rounds(), 3, 1, "cucuc"),
        (Rounds(), 1, 2, "ucc"),
        (Rounds(), 2, 3, "cccuccc"),
        (Rounds(enabled=False), 3, 2, "uc"),
    ],
)
def test_an_uncached_round_stands_between_each_two_turns(clock: Rounds, turns: int, each: int, expected: str) -> None:
    done: list[str] = []
    take_turns(clock, turns, lambda: done.append("c"), lambda: done.append("u"), each=each)
    assert "".join(done) == expected


def test_the_uncached_run_alone_takes_no_turns() -> None:
    done: list[str] = []
    take_turns(Rounds(), 3, lambda: done.append("c"), None)
    assert done == ["c"] * 3
    assert Timing(cached_s=[1.0, 2.0, 3.0]).speedup == 1


@pytest.mark.parametrize("each", [1, 2, 3])
@pytest.mark.parametrize("turns", [2, 3, 6])
def test_a_machine_that_becomes_steadily_slower_changes_no_speedup(turns: int, each: int) -> None:
    timing, now = Timing(), 0.0

    def taken(seconds: float) -> float:
        nonlocal now
        now += 1
        return seconds * (1 + 0.1 * now)

    take_turns(
        Rounds(),
        turns,
        lambda: timing.cached_s.append(taken(1)),
        lambda: timing.uncached_s.append(taken(3)),
        each=each,
    )
    assert timing.speedup == pytest.approx(3)


def test_one_round_of_each_is_their_ratio() -> None:
    assert Timing(uncached_s=[6.0], cached_s=[2.0]).speedup == 3
