"""Diversity over seeds, against loops over the pairs (closed forms)."""

from __future__ import annotations

import itertools
import statistics

import pytest
import torch
from torch import Tensor

from deepcache.errors import DeepCacheError
from deepcache.metrics import diversity as module
from deepcache.metrics.clip_score import Clip
from deepcache.metrics.diversity import diversity


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
def images() -> Tensor:
    values = torch.randint(256, (5, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    return values / 255


@pytest.mark.parametrize("batch", [1, 3, 32])
def test_it_is_the_mean_over_all_pairs_and_seeds(images, measure, monkeypatch, batch):
    monkeypatch.setattr(module, "_BATCH", batch)
    found = diversity(images, "a red sneaker", **measure)
    pairs = list(itertools.combinations(images.double(), 2))
    scores = [100 * image.double().mean().item() for image in images]
    assert {type(value) for value in found.values()} == {float}
    expected = {
        "pairwise_perceptual": statistics.mean((a - b).abs().mean().item() for a, b in pairs),
        "pairwise_mse": statistics.mean((a - b).square().mean().item() for a, b in pairs),
        "clip_mean": statistics.mean(scores),
        "clip_variance": statistics.variance(scores),
    }
    assert found == pytest.approx(expected, rel=1e-5)  # distances and features are float32
    with_itself = 2 * images.double().var(dim=0, unbiased=False).mean().item()  # broken: images paired with themselves
    assert found["pairwise_mse"] != pytest.approx(with_itself, rel=0.1)


def test_equal_images_have_none(measure):
    found = diversity(torch.full((3, 3, 4, 4), 0.6), "", **measure)
    assert found == pytest.approx(
        {"pairwise_perceptual": 0, "pairwise_mse": 0, "clip_mean": 60, "clip_variance": 0}, abs=1e-4
    )


def test_two_images_one_apart_are_one_apart(measure):
    found = diversity(torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)]), "", **measure)
    assert found == pytest.approx({"pairwise_perceptual": 1, "pairwise_mse": 1, "clip_mean": 50, "clip_variance": 5000})


@pytest.mark.parametrize("num_images", [0, 1])
def test_fewer_than_two_images_are_refused(measure, num_images):
    with pytest.raises(DeepCacheError, match=r"expected .* B at least 2, got shape"):
        diversity(torch.zeros(num_images, 3, 4, 4), "", **measure)
