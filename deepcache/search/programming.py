"""The best full steps of a generation: exactly for a sum of errors, by dynamic programming; else by descent.

The cost of a stretch of shallow steps depends on the full step before it and, with order k, on the k gaps before that.
So the state is the last full step i and the gaps g_1, .., g_k that lead to it (0 where there is none), and

    V_{n+1}(i + d, (d, g_1, .., g_{k-1})) = min over g_k of V_n(i, (g_1, .., g_k)) + C(i, (g_1, .., g_k), d)

where C is the sum of the errors of the steps between i and i + d.

References: Dynamic Programming (Bellman, 1957)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate
from operator import sub

import numpy as np
from numpy.typing import NDArray

from deepcache.errors import DeepCacheError

Array = NDArray[np.float64]
Steps = tuple[int, ...]
Error = Callable[[Steps, int], float]  # from the last full steps, newest first, and a shallow step
_FARTHEST = 3  # steps that a full step is moved by at once
_LEAST = 1e-6  # share of the error that a move must take off


def stretches(error: Error, num_steps: int, order: int, longest: int) -> Array:
    """Return the costs of all stretches of shallow steps between full steps with gaps of at most `longest`.

    The error of a step, at least 0, depends on at most `order` + 1 full steps before it.

    Returns:
        (T, G, .., G, G), by the last full step, `order` gaps before it, and the gap after it, which is the last stretch
        if it reaches T; infinite where there is no such stretch.
    """
    size = min(longest, num_steps) + 1
    costs = np.full((num_steps, *[size] * (order + 1)), np.inf)
    for last in range(num_steps):
        end = min(size, num_steps - last + 1)  # of the gaps after the full step
        for gaps in _gaps(last, order, size):
            nodes = tuple(accumulate(filter(None, gaps), sub, initial=last))
            errors = [error(nodes, last + after) for after in range(1, end - 1)]
            costs[(last, *gaps)][1:end] = np.cumsum([0.0, *errors])
    return costs


def _gaps(last: int, order: int, size: int) -> list[Steps]:
    """Return all gaps that may lead to a full step, filled with 0 where fewer full steps come before it."""
    found: list[Steps] = [()]
    for _ in range(order):
        found = [(*gaps, gap) for gaps in found for gap in range(1, min(size, last - sum(gaps) + 1)) or (0,)]
    return found


def best(costs: Array, num_full: int) -> tuple[Steps, float]:
    """Return the `num_full` full steps, from 0, whose stretches cost least, and their cost.

    Full steps that are too few to cover all steps are refused, since the gaps of the stretches are too short.
    """
    num_steps, size, states = costs.shape[0], costs.shape[-1], costs.shape[:-1]
    values = np.full(states, np.inf)
    values[(0, *[0] * (len(states) - 1))] = 0.0
    chosen = []  # for each full step but the first, by state, the oldest gap, which leaves the state
    for _ in range(num_full - 1):
        after, before = np.full(states, np.inf), np.zeros(states, np.int32)
        for last in range(num_steps - 1):
            for gap in range(1, min(size, num_steps - last)):
                reached = values[last] + costs[last, ..., gap]
                if len(states) > 1:
                    after[last + gap, gap] = reached.min(axis=-1)
                    before[last + gap, gap] = reached.argmin(axis=-1)
                elif reached <= after[last + gap]:
                    after[last + gap], before[last + gap] = reached, gap
        values = after
        chosen.append(before)
    for last in range(num_steps):
        values[last] += costs[last, ..., num_steps - last] if num_steps - last < size else np.inf
    place = np.unravel_index(int(values.argmin()), states)
    total = float(values[place])
    if not np.isfinite(total):
        raise DeepCacheError(
            f"expected more full steps than {num_full}: gaps of at most {size - 1} must cover {num_steps}"
        )
    state = tuple(map(int, place))
    steps = [state[0]]
    for before in reversed(chosen):
        last, *gaps = (*state, int(before[state]))
        state = (last - gaps[0], *gaps[1:])
        steps.append(state[0])
    return tuple(reversed(steps)), total


def descended(full_steps: Steps, num_steps: int, error: Callable[[Steps], float]) -> Steps:
    """Move single full steps but step 0, by steepest descent, until no move makes the error smaller."""
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
