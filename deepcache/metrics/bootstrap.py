"""How far a figure over some seeds may lie from that of all: the percentile bootstrap."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import numpy as np
from numpy.typing import NDArray

TAIL = 0.025  # left out at either end
_RESAMPLES, _BEYOND = 2000, 20  # at least, and at least so many beyond either end

Statistic = Callable[..., NDArray[np.float64]]  # over an axis


def bootstrap(statistic: Statistic, values: NDArray[np.float64], tail: float = TAIL) -> tuple[float, float]:
    """The ends of a statistic's interval, from a fixed seed.

    Args:
        statistic: of values over `axis`.
        values: (B, ...), one a seed; seeds are drawn along the first axis.
        tail: the share of resamples that is left out at either end.

    References: An Introduction to the Bootstrap (Efron and Tibshirani, 1993), chapter 13
    """
    count = max(_RESAMPLES, ceil(_BEYOND / tail))
    drawn = np.random.default_rng(0).integers(len(values), size=(count, len(values)))
    low, high = np.quantile(statistic(values[drawn], axis=1), [tail, 1 - tail])
    return float(low), float(high)
