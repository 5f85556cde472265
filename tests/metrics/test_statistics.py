"""Statistics batch by batch are those of all images at once, and intervals those of plain resampling (exact laws)."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepcache.errors import DeepCacheError
from deepcache.metrics import statistics
from deepcache.metrics.statistics import Features, RunningMoments, Statistics, bootstrap, drawn

COUNT = 60
VALUES = np.random.default_rng(1).normal(3, 2, size=40)


def features(count: int = COUNT, seed: int = 0) -> Features:
    rng = np.random.default_rng(seed)
    arrays = (rng.normal(3, 1, (count, 5)), rng.normal(size=(count, 4)), rng.dirichlet(np.ones(6), size=count))
    return Features(*(array.astype(np.float32) for array in arrays))


def parts(found: Features, cuts: list[int]) -> list[Features]:
    edges = [0, *sorted(set(cuts)), len(found.pooled)]
    slices = [slice(a, b) for a, b in pairwise(edges)]
    return [Features(found.pooled[s], found.spatial[s], found.probabilities[s]) for s in slices]


@given(cuts=st.lists(st.integers(1, COUNT - 1)))
def test_any_batches_give_the_same(cuts):
    whole = Statistics.of([features()], split=7)
    found = Statistics.of(parts(features(), cuts), split=7)
    np.testing.assert_allclose(found.pooled.moments().mean, whole.pooled.moments().mean, rtol=1e-12)
    np.testing.assert_allclose(
        found.pooled.moments().covariance, whole.pooled.moments().covariance, rtol=1e-9, atol=1e-12
    )
    assert found.inception_score == pytest.approx(whole.inception_score, rel=1e-12)
    np.testing.assert_array_equal(found.features, whole.features)
    assert found.count == COUNT


def test_a_batch_that_is_converted_in_parts_gives_the_same(monkeypatch):
    whole = Statistics.of([features()], split=20)
    monkeypatch.setattr(statistics, "_AT_ONCE", 7)
    found = Statistics.of([features()], split=20)
    np.testing.assert_array_equal(found.features, features().pooled)
    np.testing.assert_allclose(found.spatial.mean, whole.spatial.mean, rtol=1e-12)
    np.testing.assert_allclose(found.pooled.scatter, whole.pooled.scatter, rtol=1e-9, atol=1e-12)
    assert found.inception_score == pytest.approx(whole.inception_score, rel=1e-12)


def test_moments_are_numpys():
    found = features().pooled
    np.testing.assert_allclose(
        RunningMoments.of(found).moments().covariance, np.cov(found.astype(np.float64), rowvar=False), rtol=1e-12
    )


def test_moments_far_from_zero_do_not_cancel():
    """Sums of squares would: a spread of 1 about 1e8 is lost in float64's sixteen digits."""
    found = features().pooled.astype(np.float64) + 1e8
    halves = RunningMoments.of(found[:25]).merge(RunningMoments.of(found[25:]))
    expected = np.cov(found - 1e8, rowvar=False)
    np.testing.assert_allclose(halves.moments().covariance, expected, rtol=1e-6, atol=1e-6)
    naive = found.T @ found / COUNT - np.outer(found.mean(0), found.mean(0))
    assert not np.allclose(naive, expected, rtol=1e-2)


@given(st.permutations(range(4)))
def test_the_order_of_a_merge_is_rounding(order):
    quarters = [RunningMoments.of(features().pooled[start : start + 15]) for start in range(0, COUNT, 15)]
    found = quarters[order[0]]
    for number in order[1:]:
        found = found.merge(quarters[number])
    np.testing.assert_allclose(found.scatter, RunningMoments.of(features().pooled).scatter, rtol=1e-9, atol=1e-9)


def test_inception_score_of_sharp_balanced_classes_is_their_number():
    sharp = np.tile(np.eye(10), (5, 1))
    assert Statistics.of([Features(sharp, sharp, sharp)]).inception_score == pytest.approx(10)


def test_inception_score_of_equal_predictions_is_one():
    flat = np.full((50, 10), 0.1)
    assert Statistics.of([Features(flat, flat, flat)]).inception_score == pytest.approx(1)


@pytest.mark.parametrize("num_splits", [1, 4])
def test_inception_score_agrees_with_torch_fidelity(num_splits):
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = torch.from_numpy(np.random.default_rng(5).normal(size=(200, 12)))
    theirs = isc_features_to_metric(logits, splits=num_splits, shuffle=False)["inception_score_mean"]
    probabilities = logits.softmax(dim=1).numpy()
    found = Statistics.of([Features(probabilities, probabilities, probabilities)], split=200 // num_splits)
    assert found.inception_score == pytest.approx(theirs, rel=1e-9)


def test_no_more_features_are_kept_than_asked():
    chosen = drawn(COUNT, 17)
    found = Statistics.of(parts(features(), [10, 25]), chosen=chosen)
    np.testing.assert_array_equal(found.features, features().pooled[chosen])
    assert len(found.features) == 17
    assert found.count == COUNT


def test_features_are_kept_of_images_of_all_classes():
    """Of 50 classes, in whose order 2,000 images stand, or which go round; the first, or every tenth, are of five."""
    chosen = drawn(2_000, 200)
    assert chosen.sum() == 200
    in_order, in_turn = np.arange(2_000) // 40, np.arange(2_000) % 50
    assert len(set(in_order[:200])) == len(set(in_turn[::10])) == 5
    assert min(len(set(in_order[chosen])), len(set(in_turn[chosen]))) >= 45
    assert drawn(10, 10) is drawn(10, None) is None


def test_features_that_are_no_numbers_are_refused():
    broken = features()
    broken.pooled[3, 1] = np.nan
    with pytest.raises(DeepCacheError, match="expected finite features, got NaN"):
        Statistics.of([broken])


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
    monkeypatch.setattr(statistics, "_CELLS", 7 * pairs.size)
    assert bootstrap(difference, pairs) == whole


def test_a_wider_interval_has_a_smaller_tail():
    (low, high), (wide_low, wide_high) = bootstrap(np.mean, VALUES), bootstrap(np.mean, VALUES, 0.005)
    assert wide_low < low < VALUES.mean() < high < wide_high
