"""A family of U-Nets that is not diffusers': one class behind the seam, and the cache and the costs know nothing of it.

The oracle is the U-Net's own forward, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepcache import DeepCacheError, UnsupportedUNetError, cached
from deepcache.costs.macs import cost
from deepcache.unets import registry
from deepcache.unets.calls import Call
from deepcache.unets.family import CutUNet, Family, Feature, Nest, Stage, require_branch
from deepcache.unets.watched.steps import CutWatchedUNet

TIMESTEPS = torch.tensor([900, 700, 500, 300])


class Foreign(nn.Module):
    """A U-Net of one skip: output = up([deep(down(x)), down(x)])."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep, self.up = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(8, 3, 1)

    def forward(self, sample: Tensor, timestep: Tensor) -> Any:
        skip = self.down(sample) + timestep / 1000
        return SimpleNamespace(sample=self.up(torch.cat([self.deep(skip), skip], dim=1)))


class CutForeign:
    """The seam's steps on a `Foreign`."""

    def __init__(self, unet: Foreign) -> None:
        self._unet = unet

    @staticmethod
    def run_full(unet: Foreign, sample: Tensor, timestep: Tensor) -> tuple[Any, Feature]:
        skip = unet.down(sample) + timestep / 1000
        feature = unet.deep(skip)
        return SimpleNamespace(sample=unet.up(torch.cat([feature, skip], dim=1))), (feature,)

    @staticmethod
    def run_shallow(unet: Foreign, feature: Feature, sample: Tensor, timestep: Tensor) -> Any:
        skip = unet.down(sample) + timestep / 1000
        return SimpleNamespace(sample=unet.up(torch.cat([*feature, skip], dim=1)))

    def full(self, *args: Any, **kwargs: Any) -> tuple[Any, Feature]:
        return self.run_full(self._unet, *args, **kwargs)

    def shallow(self, feature: Feature, *args: Any, **kwargs: Any) -> Any:
        return self.run_shallow(self._unet, feature, *args, **kwargs)

    def require_inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if len(args) + len(kwargs) != len(("sample", "timestep")):
            raise UnsupportedUNetError("expected a sample and a timestep")

    def full_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        return (self._unet, *args), kwargs

    def shallow_call(self, feature: Feature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        return (self._unet, feature, *args), kwargs

    def tensors_of(self, output: Any) -> tuple[Tensor, ...]:
        return (output.sample,)

    def with_tensors(self, _output: Any, tensors: tuple[Tensor, ...]) -> Any:
        return SimpleNamespace(sample=tensors[0])


class ForeignFamily:
    classes: Mapping[str, type[nn.Module]] = {"Foreign": Foreign}

    def covers(self, unet: Any) -> bool:
        return isinstance(unet, Foreign)

    def nest(self, unet: Any, _call: Call | None = None) -> Nest[Stage]:
        return Nest((Stage("down", (unet.down,)),), Stage("deep", (unet.deep,)), (Stage("up", (unet.up,)),))

    def cut(self, unet: Any, branch: int) -> CutUNet:
        require_branch(branch, 1)
        return CutForeign(unet)

    def example(self, unet: Any, **_: Any) -> Call:
        return (torch.empty(1, unet.down.in_channels, 8, 8, device="meta"), torch.tensor(0)), {}

    def num_frames(self, _unet: Any, _shape: tuple[int, ...]) -> int:
        return 1


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Foreign:
    foreign: Family = ForeignFamily()
    monkeypatch.setattr(registry, "FAMILIES", (foreign, *registry.FAMILIES))  # before that of all other classes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Foreign().requires_grad_(requires_grad=False)


def sample_of(model: Foreign) -> Tensor:
    sample = torch.linspace(-1, 1, 3 * 64).reshape(1, 3, 8, 8)
    for t in TIMESTEPS:
        sample = sample - 0.3 * model(sample, t).sample
    return sample


@pytest.mark.parametrize("how", [None, {"backend": "eager"}], ids=["eager", "compiled"])
def test_interval_one_equals_uncached(model: Foreign, how: Any) -> None:  # law 3
    expected = sample_of(model)
    with cached(model, interval=1, compile=how):
        assert torch.equal(sample_of(model), expected)
    assert torch.equal(sample_of(model), expected)


def test_no_deep_stage_runs_on_a_shallow_step(model: Foreign) -> None:  # law 6
    ran: list[int] = []
    model.deep.register_forward_hook(lambda *_: ran.append(1))
    expected = sample_of(model)
    ran.clear()
    with cached(model, interval=2, order=0) as cache:
        found = sample_of(model)
    assert len(ran) == 2
    assert cache.generations[0].full_steps == (0, 2)
    assert not torch.equal(found, expected)


def test_a_generation_tells_its_macs(model: Foreign) -> None:
    """By hand: a 1 x 1 convolution of 3 to 4 channels, one of 8 to 3, and deep one of 3 x 3; biases count."""
    full, shallow = (64 * (4 * 4 + 3 * 9 + (4 * 4 * 9 + 4))), 64 * (4 * 4 + 3 * 9)
    found = cost(model, *registry.family_of(model).example(model)[0])
    assert (found.full(), found.shallow(0)) == (full, shallow)
    with cached(model, interval=2) as cache:
        sample_of(model)
    assert cache.generations[0].macs == (full + shallow) // 2


def test_refusals_are_the_familys(model: Foreign) -> None:
    with pytest.raises(DeepCacheError, match=r"expected branch 0\.\.0"), cached(model, interval=2, branch=1):
        pass
    with cached(model, interval=2), pytest.raises(UnsupportedUNetError, match="a sample and a timestep"):
        model(torch.zeros(1, 3, 8, 8))


def test_without_its_line_in_the_registry_the_unet_is_watched() -> None:
    """Test of the test."""
    assert isinstance(registry.cut(Foreign(), 0), CutWatchedUNet)
    with pytest.raises(UnsupportedUNetError, match=r"expected a U-Net, a torch.nn.Module, got a Tensor"):
        registry.cut(torch.zeros(1), 0)
