"""The best full steps of a generation: exactly for a sum of errors, by dynamic programming; else by descent.

The cost of a stretch of shallow steps depends on the full step before it and, with order k, on the k gaps before that.
So the state is the last full step i and the gaps g_1, .., g_k that lead to it (0 where there is none), and

    V_{n+1}(i + d, (d, g_1, .., g_{k-1})) = min over g_k of V_n(i, (g_1, .., g_k)) + C(i, (g_1, .., g_k), d)

where C is the sum of the errors of the steps between i and i + d.

References: Dynamic Programming (Bellman, 1957)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepcache.errors import DeepCacheError

Array = NDArray[np.float64]
Steps = tuple[int, ...]
Error = Callable[[Steps, int], float]  # from the last full steps, newest first, and a shallow step
_FARTHEST = 3  # steps that a full step is moved by at once
_LEAST = 1e-6  # share of the error that a move must take off


@dataclass(frozen=True, eq=False)
class Stretches:
    """The costs of all stretches of shallow steps.

    Attributes:
        costs: (T, G, .., G, G), by the last full step, `order` gaps before it, and the gap after it, which is the last
            stretch if it reaches T; infinite where there is no such stretch.
        order: order of the prediction.
    """

    costs: Array
    order: int

    @classmethod
    def of(cls, error: Error, num_steps: int, order: int, longest: int) -> Stretches:
        """Add up the errors of the steps.

        Args:
            error: error of a step, at least 0, by at most `order` + 1 full steps before it.
            num_steps: T.
            order: order of the prediction, 0..2.
            longest: largest gap between full steps.
        """
        size = min(longest, num_steps) + 1
        costs = np.full((num_steps, *[size] * (order + 1)), np.inf)
        for last in range(num_steps):
            for gaps in _gaps(last, order, size):
                nodes = [last]
                for gap in gaps:
                    if gap:
                        nodes.append(nodes[-1] - gap)
                total = 0.0
                for after in range(1, min(size, num_steps - last + 1)):
                    if after > 1:
                        total += error(tuple(nodes), last + after - 1)
                    costs[(last, *gaps, after)] = total
        return cls(costs, order)


def best(stretches: Stretches, num_full: int) -> tuple[Steps, float]:
    """Return the full steps, from 0, whose stretches cost least, and their cost.

    Args:
        stretches: the costs of all stretches.
        num_full: K, 1..T.

    Raises:
        DeepCacheError: K full steps cannot cover all steps, since the gaps of the stretches are too short.
    """
    costs, order = stretches.costs, stretches.order
    num_steps, size = costs.shape[0], costs.shape[-1]
    states = (num_steps, *[size] * order)
    values = np.full(states, np.inf)
    values[(0, *[0] * order)] = 0.0
    chosen = []
    for _ in range(num_full - 1):
        after = np.full(states, np.inf)
        before = np.zeros(states, np.int32)  # the oldest gap, which leaves the state
        for last in range(num_steps - 1):
            for gap in range(1, min(size, num_steps - last)):
                reached = values[last] + costs[last, ..., gap]
                if order == 0:
                    after[last + gap] = np.minimum(after[last + gap], reached)
                    before[last + gap] = np.where(after[last + gap] == reached, gap, before[last + gap])
                else:
                    after[last + gap, gap] = reached.min(axis=-1)
                    before[last + gap, gap] = reached.argmin(axis=-1)
        values = after
        chosen.append(before)
    ends = values + _endings(costs)
    place = np.unravel_index(int(ends.argmin()), states)
    if not np.isfinite(ends[place]):
        raise DeepCacheError(
            f"expected more full steps than {num_full}: gaps of at most {size - 1} must cover {num_steps}"
        )
    return _traced(chosen, tuple(int(x) for x in place), order), float(ends[place])


def _endings(costs: Array) -> Array:
    """Return the cost of the last stretch, by state."""
    num_steps, size = costs.shape[0], costs.shape[-1]
    found = np.full(costs.shape[:-1], np.inf)
    for last in range(num_steps):
        if num_steps - last < size:
            found[last] = costs[last, ..., num_steps - last]
    return found


def _traced(chosen: list[NDArray[np.int32]], place: tuple[int, ...], order: int) -> tuple[int, ...]:
    steps = [place[0]]
    for before in reversed(chosen):
        if order == 0:
            place = (place[0] - int(before[place]),)
        else:
            gap = place[1]
            place = (place[0] - gap, *place[2:], int(before[place]))
        steps.append(place[0])
    return tuple(reversed(steps))


def _gaps(last: int, order: int, size: int) -> list[tuple[int, ...]]:
    """Return all gaps that may lead to a full step, filled with 0 where fewer full steps come before it."""
    found: list[tuple[int, ...]] = [()]
    for _ in range(order):
        longer = []
        for gaps in found:
            left = last - sum(gaps)
            ended = 0 in gaps
            if left == 0 or ended:
                longer.append((*gaps, 0))
            else:
                longer += [(*gaps, gap) for gap in range(1, min(size, left + 1))]
        found = longer
    return found


def descended(full_steps: Steps, num_steps: int, error: Callable[[Steps], float]) -> Steps:
    """Move single full steps, by steepest descent, until no move makes the error smaller.

    Args:
        full_steps: full steps to begin with; step 0 stays.
        num_steps: T.
        error: error of full steps.
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
