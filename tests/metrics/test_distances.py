"""Distances: closed forms and hand-worked sets (exact laws), and torch-fidelity (an independent library)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepcache.errors import DeepCacheError
from deepcache.metrics import distances
from deepcache.metrics.distances import Manifold, frechet_distance, psnr
from deepcache.metrics.statistics import Moments, RunningMoments


def moments(features: np.ndarray) -> Moments:
    return RunningMoments.of(features).moments()


def gaussian_features(seed: int, count: int = 300, size: int = 12) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, size)) @ rng.normal(size=(size, size)) + rng.normal(size=size)


@given(
    mean=st.tuples(*[st.floats(-3, 3)] * 4),
    first=st.tuples(*[st.floats(0, 3)] * 4),
    second=st.tuples(*[st.floats(0, 3)] * 4),
)
def test_frechet_distance_of_axis_aligned_gaussians_is_the_closed_form(mean, first, second):
    # exact: |m|^2 + sum (s1 - s2)^2 for standard deviations s1, s2 on the axes
    a = Moments(np.zeros(4), np.diag(np.square(first)))
    b = Moments(np.array(mean), np.diag(np.square(second)))
    expected = np.sum(np.square(mean)) + np.sum(np.square(np.subtract(first, second)))
    # a root of an eigenvalue of 1e-16, rounding's size, is 1e-8
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9, abs=1e-6)


def test_frechet_distance_of_equal_sets_is_zero():
    same = moments(gaussian_features(0))
    assert frechet_distance(same, same) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_is_symmetric_and_unchanged_by_rotation():
    a, b = gaussian_features(0), gaussian_features(1)
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(12, 12)))[0]
    expected = frechet_distance(moments(a), moments(b))
    assert frechet_distance(moments(b), moments(a)) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(moments(a @ rotation), moments(b @ rotation)) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_agrees_with_torch_fidelity():
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    a, b = gaussian_features(3), gaussian_features(4)
    theirs = fid_statistics_to_metric(
        fid_features_to_statistics(torch.from_numpy(a)), fid_features_to_statistics(torch.from_numpy(b)), verbose=False
    )["frechet_inception_distance"]
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(theirs, rel=1e-6)


def test_frechet_distance_refuses_features_of_two_extractors():
    with pytest.raises(DeepCacheError, match="one length, got 12 and 5"):
        frechet_distance(moments(gaussian_features(0)), moments(gaussian_features(0, size=5)))


def test_moments_of_two_points_by_hand():
    found = moments(np.array([[0.0, 0.0], [2.0, 4.0]]))
    np.testing.assert_array_equal(found.mean, [1, 2])
    np.testing.assert_array_equal(found.covariance, [[2, 4], [4, 8]])


def precision_recall(reference, samples, k=3):
    real, fake = Manifold.of(reference, k=k), Manifold.of(samples, k=k)
    return real.share_within(samples), fake.share_within(reference)


def test_precision_and_recall_by_hand():
    # on a line, k = 1: every real point's ball reaches its neighbour at distance 1, a sample at 10 lies outside
    reference = np.array([[0.0], [1.0], [2.0], [3.0]])
    samples = np.array([[0.5], [1.5], [10.0], [10.25]])
    precision, recall = precision_recall(reference, samples, k=1)
    assert precision == 0.5  # 0.5 and 1.5
    assert recall == 0.75  # the balls of 0.5 and 1.5 have radius 1 and hold 0, 1, 2; those at 10 hold nothing


def test_precision_and_recall_of_equal_sets_are_one():
    same = gaussian_features(6)
    assert precision_recall(same, same) == (1, 1)


def test_precision_and_recall_of_far_sets_are_zero():
    assert precision_recall(gaussian_features(7), gaussian_features(7) + 1e6) == (0, 0)


def test_precision_and_recall_agree_with_torch_fidelity():
    from torch_fidelity.metric_prc import prc_features_to_metric

    reference, samples = gaussian_features(8), 0.7 * gaussian_features(8, count=250) + 0.5
    theirs = prc_features_to_metric(torch.from_numpy(samples), torch.from_numpy(reference), verbose=False)
    ours = precision_recall(reference, samples)
    assert 0 < ours[0] < 1
    # theirs averages in float32
    assert ours == pytest.approx((theirs["precision"], theirs["recall"]), rel=1e-6)


def test_a_manifold_in_blocks_is_the_manifold_at_once(monkeypatch):
    reference, samples = gaussian_features(10), 0.8 * gaussian_features(11)
    whole = precision_recall(reference, samples)
    monkeypatch.setattr(distances, "_CELLS", 7 * len(reference))  # seven rows at a time
    monkeypatch.setattr(distances, "_COLUMNS", 13)
    assert precision_recall(reference, samples) == whole


def test_precision_and_recall_are_those_of_plain_distances():
    reference, samples = gaussian_features(12) + 1e3, 0.8 * gaussian_features(13) + 1e3  # far from the origin
    between = np.linalg.norm(samples[:, None] - reference[None], axis=2)
    radii = np.sort(np.linalg.norm(reference[:, None] - reference[None], axis=2), axis=1)[:, 3]
    assert precision_recall(reference, samples)[0] == pytest.approx((between <= radii).any(axis=1).mean(), rel=1e-12)


def test_precision_and_recall_refuse_too_few_features():
    with pytest.raises(DeepCacheError, match=r"more than k = 3 features a side, got 3$"):
        precision_recall(gaussian_features(0, count=3), gaussian_features(0))


def test_psnr_of_a_known_error():
    assert psnr(0.01) == pytest.approx(20)
    assert psnr(4.0, peak=2.0) == pytest.approx(0)
    assert psnr(0.0) == math.inf
