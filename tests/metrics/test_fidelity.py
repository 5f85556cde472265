"""Metrics of sets of images: exact laws on made-up features, and loops over the pairs of images (closed forms)."""

from __future__ import annotations

import itertools
import math
import statistics

import numpy as np
import pytest
import torch
from torch import Tensor

from deepcache.errors import DeepCacheError
from deepcache.metrics import fidelity, reference
from deepcache.metrics.clip_score import Clip
from deepcache.metrics.distances import Manifold
from deepcache.metrics.fidelity import PSNR_AT_MOST_DB, diversity, drift, quality, squared_errors
from deepcache.metrics.registry import METRICS
from deepcache.metrics.statistics import Features, Statistics


@pytest.fixture
def features() -> Features:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(10), size=100)
    return Features(rng.normal(size=(100, 6)), rng.normal(size=(100, 8)), probabilities)


def test_samples_equal_to_the_reference_are_perfect(features):
    found = quality(Statistics.of([features]), reference.from_statistics(Statistics.of([features])))
    assert found["fid"] == pytest.approx(0, abs=1e-9)
    assert found["sfid"] == pytest.approx(0, abs=1e-9)
    assert (found["precision"], found["recall"]) == (100, 100)
    assert 1 <= found["is"] <= 10


def test_a_moved_set_has_the_squared_distance_as_fid(features):
    moved = Features(features.pooled + 2, features.spatial, features.probabilities)
    found = quality(Statistics.of([moved]), reference.from_statistics(Statistics.of([features])))
    assert found["fid"] == pytest.approx(6 * 4)  # closed form: equal covariances, means 2 apart on 6 axes
    assert found["sfid"] == pytest.approx(0, abs=1e-9)


def test_what_a_reference_has_no_part_for_is_not_measured(features):
    known = reference.from_statistics(Statistics.of([features]))
    found = quality(Statistics.of([features]), reference.Reference(known.pooled))
    assert found.keys() == {"fid", "is"}


@pytest.mark.parametrize(("device", "expected"), [("cuda:1", "cuda:1"), ("mps", "cpu"), ("cpu", "cpu")])
def test_precision_and_recall_are_worked_out_where_the_extractor_is(features, monkeypatch, device, expected):
    """If it has float64 there."""
    asked, of = [], Manifold.of
    monkeypatch.setattr(Manifold, "of", lambda found, *, device: asked.append(device) or of(found))
    quality(Statistics.of([features]), reference.from_statistics(Statistics.of([features])).on(device))
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


class MeanAbsolute:
    """A distance that a test can do in its head."""

    name = "mean absolute"

    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        return (first - second).abs().mean(dim=(1, 2, 3))


class Brightness:
    """An image's cosine with any text is its mean: 0.36 is 36 of 100."""

    def encode_image(self, images: Tensor) -> Tensor:
        mean = images.mean(dim=(1, 2, 3))
        return torch.stack([mean, (1 - mean**2).sqrt()], dim=1)

    def encode_text(self, tokens: Tensor) -> Tensor:
        return torch.tensor([[1.0, 0.0]]).expand(len(tokens), 2)

    def parameters(self) -> list[Tensor]:
        return [torch.zeros(1)]


@pytest.fixture
def measure() -> dict[str, object]:
    from torchvision.transforms.functional import to_tensor

    clip = Clip("brightness", Brightness(), to_tensor, lambda texts: torch.zeros(len(texts), 1))
    return {"clip": clip, "perceptual": MeanAbsolute()}


@pytest.fixture
def varied() -> Tensor:
    values = torch.randint(256, (5, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    return values / 255


@pytest.mark.parametrize("batch", [1, 3, 32])
def test_diversity_is_the_mean_over_all_pairs_and_seeds(varied, measure, monkeypatch, batch):
    monkeypatch.setattr(fidelity, "_PAIRS", batch)
    found = diversity(varied, "a red sneaker", **measure)
    pairs = list(itertools.combinations(varied.double(), 2))
    scores = [100 * image.double().mean().item() for image in varied]
    assert {type(value) for value in found.values()} == {float}
    assert [*found] == [key for key, metric in METRICS.items() if metric.inputs == "one prompt"]
    assert all(METRICS[key].low <= value <= METRICS[key].high for key, value in found.items())
    expected = {
        "pairwise_perceptual": statistics.mean((a - b).abs().mean().item() for a, b in pairs),
        "pairwise_mse": statistics.mean((a - b).square().mean().item() for a, b in pairs),
        "clip_mean": statistics.mean(scores),
        "clip_variance": statistics.variance(scores),
    }
    assert found == pytest.approx(expected, rel=1e-5)  # distances and features are float32
    with_itself = 2 * varied.double().var(dim=0, unbiased=False).mean().item()  # broken: images paired with themselves
    assert found["pairwise_mse"] != pytest.approx(with_itself, rel=0.1)


def test_equal_images_have_no_diversity(measure):
    found = diversity(torch.full((3, 3, 4, 4), 0.6), "", **measure)
    assert found == pytest.approx(
        {"pairwise_perceptual": 0, "pairwise_mse": 0, "clip_mean": 60, "clip_variance": 0}, abs=1e-4
    )


def test_two_images_one_apart_have_a_diversity_of_one(measure):
    found = diversity(torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)]), "", **measure)
    assert found == pytest.approx({"pairwise_perceptual": 1, "pairwise_mse": 1, "clip_mean": 50, "clip_variance": 5000})


@pytest.mark.parametrize("num_images", [0, 1])
def test_fewer_than_two_images_are_refused(measure, num_images):
    with pytest.raises(DeepCacheError, match=r"expected .* B at least 2, got shape"):
        diversity(torch.zeros(num_images, 3, 4, 4), "", **measure)
