"""The bootstrap: closed forms, numpy's own quantiles of plain resampling (independent), and the size of its blocks."""

from __future__ import annotations

import numpy as np
import pytest

from deepcache.metrics import bootstrap as module
from deepcache.metrics.bootstrap import bootstrap

VALUES = np.random.default_rng(1).normal(3, 2, size=40)


def test_equal_values_have_no_interval():
    assert bootstrap(np.mean, np.full(9, 2.5)) == (2.5, 2.5)


@pytest.mark.parametrize(("statistic", "tail"), [(np.mean, 0.025), (np.median, 0.005)])
def test_the_interval_is_that_of_resamples_one_by_one(statistic, tail):
    generator = np.random.default_rng(0)
    count = round(max(2_000, 20 / tail))
    resampled = [statistic(VALUES[generator.integers(40, size=40)]) for _ in range(count)]
    assert bootstrap(statistic, VALUES, tail) == pytest.approx(np.quantile(resampled, [tail, 1 - tail]), rel=1e-12)


def test_blocks_change_nothing(monkeypatch):
    pairs = VALUES.reshape(20, 2)

    def difference(values: np.ndarray, axis: int) -> np.ndarray:
        both = np.median(values, axis=axis)
        return both[..., 0] - both[..., 1]

    whole = bootstrap(difference, pairs)
    monkeypatch.setattr(module, "_CELLS", 7 * pairs.size)
    assert bootstrap(difference, pairs) == whole


def test_a_wider_interval_has_a_smaller_tail():
    (low, high), (wide_low, wide_high) = bootstrap(np.mean, VALUES), bootstrap(np.mean, VALUES, 0.005)
    assert wide_low < low < VALUES.mean() < high < wide_high
