"""Metrics of whole sample sets, on made-up features (exact laws)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from deepcache.errors import DeepCacheError
from deepcache.metrics import reference
from deepcache.metrics.distances import Manifold
from deepcache.metrics.extractors import Features
from deepcache.metrics.fidelity import PSNR_AT_MOST_DB, drift, quality, squared_errors
from deepcache.metrics.statistics import Statistics


@pytest.fixture
def features() -> Features:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(10), size=100)
    return Features(rng.normal(size=(100, 6)), rng.normal(size=(100, 8)), probabilities)


def test_samples_equal_to_the_reference_are_perfect(features):
    found = quality(Statistics.of([features]), reference.from_features(features))
    assert found["fid"] == pytest.approx(0, abs=1e-9)
    assert found["sfid"] == pytest.approx(0, abs=1e-9)
    assert (found["precision"], found["recall"]) == (100, 100)
    assert 1 <= found["is"] <= 10


def test_a_moved_set_has_the_squared_distance_as_fid(features):
    moved = Features(features.pooled + 2, features.spatial, features.probabilities)
    found = quality(Statistics.of([moved]), reference.from_features(features))
    assert found["fid"] == pytest.approx(6 * 4)  # closed form: equal covariances, means 2 apart on 6 axes
    assert found["sfid"] == pytest.approx(0, abs=1e-9)


def test_what_a_reference_has_no_part_for_is_not_measured(features):
    known = reference.from_features(features)
    found = quality(Statistics.of([features]), reference.Reference(known.pooled, None, None))
    assert found.keys() == {"fid", "is"}


@pytest.mark.parametrize(("device", "expected"), [("cuda:1", "cuda:1"), ("mps", "cpu"), ("cpu", "cpu")])
def test_precision_and_recall_are_worked_out_where_the_extractor_is(features, monkeypatch, device, expected):
    """If it has float64 there."""
    asked, of = [], Manifold.of
    monkeypatch.setattr(Manifold, "of", lambda found, *, device: asked.append(device) or of(found))
    quality(Statistics.of([features]), reference.from_features(features).on(device))
    assert asked == [expected, expected]


def test_equal_samples_do_not_drift(features):
    images = torch.rand(100, 3, 4, 4)
    found = drift(features, features, squared_errors(images, images))
    assert found["fid_drift"] == pytest.approx(0, abs=1e-9)
    assert (found["mse"], found["psnr_db"], found["psnr_median_db"]) == (0, PSNR_AT_MOST_DB, PSNR_AT_MOST_DB)


def test_psnr_is_of_the_mean_error_and_its_median_of_the_middle_seed(features):
    images = torch.zeros(100, 3, 4, 4)
    tipped = images.clone()
    tipped[:10] = 1.0  # one seed in ten is another image
    tipped[10:20] = 0.05  # and one a little off
    found = drift(features, features, squared_errors(tipped, images))
    assert found["mse"] == pytest.approx(0.1 + 0.1 * 0.05**2)
    assert found["psnr_db"] == pytest.approx(10, abs=0.02)
    assert found["psnr_untipped_db"] == pytest.approx(-10 * math.log10(0.05**2 / 9))
    assert found["psnr_median_db"] == PSNR_AT_MOST_DB
    assert found["tipped"] == pytest.approx(10)


def test_a_saved_reference_comes_back(features, tmp_path):
    before = reference.from_features(features)
    reference.save(before, tmp_path / "reference.safetensors")
    after = reference.load(tmp_path / "reference.safetensors")
    # moments are kept in float32, features in float16
    np.testing.assert_allclose(after.pooled.covariance, before.pooled.covariance, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(after.spatial.mean, before.spatial.mean, rtol=1e-6)
    np.testing.assert_allclose(after.features, before.features, rtol=1e-3, atol=1e-7)


def test_a_missing_reference_is_one_clear_line(tmp_path):
    with pytest.raises(DeepCacheError, match=r"expected the reference statistics .* which is missing"):
        reference.load(tmp_path / "none.safetensors")
