"""The percentile bootstrap: how far a figure over some seeds may lie from the figure over all seeds.

This module imports numpy alone: the gate, which never loads torch, uses it as the metrics and the tuner do.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import numpy as np
from numpy.typing import NDArray

TAIL = 0.025  # the share of resamples that a 95 % interval leaves out at either end
_RESAMPLES = 2_000  # drawn at least
_BEYOND = 20  # resamples that lie beyond either end, at least
_CELLS = 1_000_000  # values that are resampled at once

Statistic = Callable[..., NDArray[np.float64]]  # takes values and the axis over which it is worked out


def bootstrap(statistic: Statistic, values: NDArray[np.float64], tail: float = TAIL) -> tuple[float, float]:
    """Work out the interval of a statistic, from a fixed random seed.

    Args:
        statistic: a function of values and an `axis`, such as `np.mean`.
        values: (B, ...), an entry for each sampling seed; entries are drawn along the first axis.
        tail: the share of resamples that is left out at either end, 0..0.5.

    Returns:
        The lower and the upper end.

    References: An Introduction to the Bootstrap (Efron and Tibshirani, 1993), chapter 13
    """
    count, size = max(_RESAMPLES, ceil(_BEYOND / tail)), len(values)
    generator, at_once = np.random.default_rng(0), max(1, _CELLS // values.size)
    numbers = [min(at_once, count - start) for start in range(0, count, at_once)]
    found = [statistic(values[generator.integers(size, size=(number, size))], axis=1) for number in numbers]
    low, high = np.quantile(np.concatenate(found), [tail, 1 - tail])
    return float(low), float(high)
