"""Perceptual distances; the oracle is lpips itself, on random weights in torchvision's format and on mini-features."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import lpips
import pytest
import torch
import torchvision
from torch import Tensor, nn

from deepcache.errors import DeepCacheError
from deepcache.metrics import perceptual
from deepcache.metrics.perceptual import Lpips, MiniPerceptual, load_perceptual
from deepcache.metrics.registry import ALEXNET_FILE
from deepcache.models.embedded import MiniFeatures


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    first, second = torch.rand(2, 3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return first, second


@pytest.fixture
def mini() -> MiniPerceptual:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MiniPerceptual(MiniFeatures(widths=(4, 6, 8)).eval())


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path) -> Path:
    """torch.hub's, empty and never left for the network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    return tmp_path / "hub/checkpoints"


@pytest.fixture
def unset(monkeypatch) -> None:
    """New networks keep the values that their memory had: random ones take seconds, and are replaced by the file's."""
    for name in ("kaiming_normal_", "kaiming_uniform_", "normal_", "uniform_", "constant_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *_, **__: tensor)


def write_backbone(path: Path) -> Path:
    """As torchvision stores it, with random features; the classifier, which nobody looks at, is one zero repeated."""
    with torch.device("meta"):
        shapes = {key: weight.shape for key, weight in torchvision.models.alexnet().state_dict().items()}
    generator, weights = torch.Generator().manual_seed(1), {}
    for key, shape in shapes.items():
        if key.startswith("features"):
            weights[key] = torch.randn(shape, generator=generator) / max(1, shape[1:].numel()) ** 0.5
        else:
            weights[key] = torch.zeros(1).expand(shape)
    torch.save(weights, path)
    return path


def oracle() -> nn.Module:
    """lpips as its users make it: torchvision loads the backbone, from the cache."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")
        return lpips.LPIPS(verbose=False)


@pytest.mark.usefixtures("unset")
def test_lpips_is_the_packages_own(images, cache):
    write_backbone(cache / ALEXNET_FILE)
    found, theirs = load_perceptual(), oracle()
    with torch.no_grad():
        expected = theirs(*images, normalize=True).flatten()
        in_wrong_range = theirs(*images).flatten()
    assert (found.name, type(found)) == ("LPIPS (alex)", Lpips)
    torch.testing.assert_close(found.distance(*images), expected, rtol=0, atol=0)
    assert not torch.allclose(in_wrong_range, expected, rtol=0.01)


@pytest.mark.usefixtures("unset")
def test_a_backbone_can_be_named(images, cache, tmp_path):
    named = load_perceptual(write_backbone(tmp_path / "own.pth"))
    write_backbone(cache / ALEXNET_FILE)
    torch.testing.assert_close(named.distance(*images), load_perceptual().distance(*images), rtol=0, atol=0)


def test_loading_lpips_draws_no_random_number(tmp_path):
    path = write_backbone(tmp_path / "own.pth")
    before = torch.get_rng_state()
    load_perceptual(path)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_backbone_it_is_mini_features_under_its_own_name(images):
    found = load_perceptual()
    assert (found.name, type(found)) == ("mini-features perceptual", MiniPerceptual)
    assert (found.distance(*images) > 0).all()


def test_mini_is_lpips_unweighted_on_mini_features(mini, images):
    oracle = lpips_on(mini.model)
    with torch.no_grad():
        expected = oracle(*images, normalize=True).flatten()
    # float32 sums in another order
    torch.testing.assert_close(mini.distance(*images), expected, rtol=1e-4, atol=1e-6)


def test_mini_without_unit_vectors_is_another_distance(mini, images, monkeypatch):
    expected = lpips_on(mini.model)(*images, normalize=True).flatten()
    monkeypatch.setattr(perceptual, "normalize", lambda maps, dim: maps)  # noqa: ARG005
    assert not torch.allclose(mini.distance(*images), expected, rtol=0.1)


def lpips_on(model: MiniFeatures) -> nn.Module:
    """The package's own sums over the maps that forward hooks see."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")
        measure = lpips.LPIPS(lpips=False, pnet_rand=True, version="0.0", verbose=False)  # 0.0 scales no channel
    measure.net, measure.L = Hooked(model), len(model.blocks)
    return measure


class Hooked(nn.Module):
    def __init__(self, model: MiniFeatures) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> list[Tensor]:
        seen: list[Tensor] = []
        hooks = [block.register_forward_hook(lambda _m, _a, output: seen.append(output)) for block in self.model.blocks]
        self.model(images)
        for hook in hooks:
            hook.remove()
        return seen


def test_distance_of_equal_images_is_zero_and_sides_can_be_swapped(mini, images):
    first, second = images
    assert torch.equal(mini.distance(first, first), torch.zeros(3))
    torch.testing.assert_close(mini.distance(first, second), mini.distance(second, first), rtol=0, atol=0)


def test_batches_change_nothing_but_rounding(mini, images, monkeypatch):
    whole = mini.distance(*images)
    monkeypatch.setattr(perceptual, "_BATCH", 2)
    torch.testing.assert_close(mini.distance(*images), whole, rtol=1e-5, atol=1e-7)


def test_a_distance_is_at_most_two_a_block(mini):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for weight in mini.model.parameters():
            nn.init.normal_(weight, std=3)
    black = torch.zeros(1, 3, 32, 32)
    assert 0 < mini.distance(black, 1 - black) <= 6


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (torch.zeros(2, 3, 32, 32), torch.zeros(1, 3, 32, 32), "expected two batches of one shape"),
        (torch.zeros(2, 3, 64, 64), torch.zeros(2, 3, 64, 64), "expected images of 32 x 32"),
        (torch.full((2, 3, 32, 32), -1.0), torch.zeros(2, 3, 32, 32), r"expected images in 0\.\.1, got values in -1"),
    ],
)
def test_images_that_cannot_be_compared_are_refused(mini, first, second, message):
    with pytest.raises(DeepCacheError, match=message):
        mini.distance(first, second)


def test_a_backbone_that_is_not_there_is_one_clear_line(tmp_path):
    with pytest.raises(DeepCacheError, match=r"^expected AlexNet's weights in .*none\.pth, .* from .*alexnet"):
        load_perceptual(tmp_path / "none.pth")


@pytest.mark.usefixtures("unset")
def test_a_file_of_another_network_is_refused(tmp_path):
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(DeepCacheError, match=r"expected torchvision's weights of alexnet in .*, which do not fit"):
        load_perceptual(tmp_path / "other.pth")


@pytest.mark.usefixtures("unset")
def test_a_file_that_would_run_code_is_refused(tmp_path):
    class Foreign:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "made"),)

    torch.save({"features.0.weight": Foreign()}, tmp_path / "foreign.pth")
    with pytest.raises(DeepCacheError, match="of which nothing ran"):
        load_perceptual(tmp_path / "foreign.pth")
    assert not (tmp_path / "made").exists()
