"""Full steps moved one at a time, as long as that helps."""

from __future__ import annotations

from collections.abc import Callable, Iterator

_FARTHEST = 3  # that a step moves at once
_LEAST = 1e-6  # of the error, that a move must take off

Steps = tuple[int, ...]


def descended(full_steps: Steps, num_steps: int, error: Callable[[Steps], float]) -> Steps:
    """By steepest descent: no move of one step alone makes the error smaller.

    Args:
        full_steps: from 0, which stays.
        num_steps: T.
        error: of full steps.
    """
    found, least = full_steps, error(full_steps)
    while True:
        moved = min(_moves(found, num_steps), key=error, default=found)
        if error(moved) >= least * (1 - _LEAST):
            return found
        found, least = moved, error(moved)


def _moves(full_steps: Steps, num_steps: int) -> Iterator[Steps]:
    kept = set(full_steps)
    for step in full_steps[1:]:
        for place in range(max(1, step - _FARTHEST), min(num_steps, step + _FARTHEST + 1)):
            if place not in kept:
                yield tuple(sorted(kept - {step} | {place}))
