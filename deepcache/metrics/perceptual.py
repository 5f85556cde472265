"""Perceptual distances: LPIPS if the weights of its backbone are found, else the same construction on mini-features."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize

from deepcache.errors import DeepCacheError, needs
from deepcache.metrics.archives import readable
from deepcache.metrics.images import checked
from deepcache.metrics.registry import ALEXNET_URL, in_torch_cache
from deepcache.models.checkpoint import contents
from deepcache.models.embedded import SIZE, MiniFeatures, load_extractor

MINI = "mini-features perceptual"
BACKBONES = {"alex": "alexnet", "vgg": "vgg16"}  # a backbone's name in lpips, and its name in torchvision
_URLS = {"alex": ALEXNET_URL, "vgg": "https://download.pytorch.org/models/vgg16-397923af.pth"}  # torchvision's
_BATCH = 32  # pairs of images that are compared at once


class Perceptual(Protocol):
    """A distance between images, under a name that records keep."""

    @property
    def name(self) -> str: ...

    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        """Measure each pair of images (B, 3, H, W) in 0..1.

        Returns:
            (B,) float32 on the CPU; 0 for equal images, lower is closer.

        Raises:
            DeepCacheError: the batches differ in shape, or are of a shape or range that is not measured.
        """


@dataclass(frozen=True, eq=False)
class Lpips:
    """LPIPS, version 0.1, by the package lpips. Distances begin at 0, and most pairs stay below 1.

    The package takes images in -1..1 and normalises each channel by ImageNet's mean and deviation; `distance` takes
    images in 0..1 and has the package do both.

    References:
        The Unreasonable Effectiveness of Deep Features as a Perceptual Metric (Zhang et al., 2018),
        https://arxiv.org/abs/1801.03924
    """

    name: str
    model: Any

    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        return _compared(lambda a, b: self.model(a, b, normalize=True).flatten(), self.model, first, second)


@dataclass(frozen=True, eq=False)
class MiniPerceptual:
    """The construction of LPIPS (Zhang et al., 2018) on mini-features, with no learned weights on its channels.

    f_l (C_l, H_l, W_l) is the map after residual block l of 3, in which the vector at each position has length 1:

        d(a, b) = sum_l mean_{h, w} sum_c (f_l(a) - f_l(b))_{c, h, w}^2

    Distances lie in 0..6: a block ends in a ReLU, so that two unit vectors are at most the root of 2 apart. Images have
    32 x 32 pixels. These distances cannot be compared with LPIPS.
    """

    model: MiniFeatures
    name: str = MINI

    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        if first.shape[-2:] != SIZE:
            raise DeepCacheError(
                f"expected images of 32 x 32 for {self.name}, got shape {tuple(first.shape)}; larger ones are for "
                "LPIPS: give load_perceptual the file of torchvision's AlexNet weights"
            )
        return _compared(self._between, self.model, first, second)

    def _between(self, first: Tensor, second: Tensor) -> Tensor:
        maps = zip(self._maps(first), self._maps(second), strict=True)
        layers = [(a - b).square().sum(dim=1).mean(dim=(1, 2)) for a, b in maps]
        return torch.stack(layers).sum(dim=0)

    def _maps(self, images: Tensor) -> list[Tensor]:
        """The map (B, C, H, W) of each block, with a unit vector (or zero, if all channels are) at each position."""
        hidden, found = self.model.stem(images * 2 - 1), []  # the network takes images in -1..1
        for block in self.model.blocks:
            hidden = block(hidden)
            found.append(normalize(hidden, dim=1))
        return found


def load_perceptual(
    backbone: Path | None = None, *, net: str = "alex", device: str | torch.device = "cpu"
) -> Perceptual:
    """Load LPIPS if the weights of its backbone are found, else `MiniPerceptual`; nothing is downloaded.

    Args:
        backbone: torchvision's file of the backbone's ImageNet weights; if not given, the file in torch.hub's cache.
            The weights that LPIPS learned itself come with its package.
        net: the backbone, "alex" or "vgg".
        device: where the network runs.

    Raises:
        DeepCacheError: there is no such net; or a file was given, and lpips is not installed or the file is not there
            or does not fit.
    """
    if net not in BACKBONES:
        raise DeepCacheError(f"expected a net out of {', '.join(BACKBONES)}; got {net!r}")
    path = backbone or in_torch_cache(Path(_URLS[net]).name)
    is_there = os.path.isfile(path)
    if backbone is None and not (is_there and find_spec("lpips") and find_spec("torchvision")):
        return MiniPerceptual(load_extractor().to(device))
    with needs("LPIPS", "metrics"):
        import lpips
    if not is_there:
        raise DeepCacheError(
            f"expected the weights of {BACKBONES[net]} in {path}, which is not there; get them from {_URLS[net]}"
        )
    return Lpips(f"LPIPS ({net})", _lpips(lpips, net, path).to(device))


def _lpips(lpips: Any, net: str, path: Path) -> Any:
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")  # lpips calls it in an old way
        model: Any = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    given = contents(path)
    with readable(path, f"torchvision's weights of {BACKBONES[net]}", "do not fit"):
        # lpips cuts torchvision's `features` into slices and keeps their numbers: slice2.3.bias is features.3.bias
        named = {key: given[f"features.{key.split('.', 1)[1]}"] for key in model.net.state_dict()}
        model.net.load_state_dict(named)
    return model.eval().requires_grad_(requires_grad=False)


@torch.no_grad()
def _compared(between: Callable[[Tensor, Tensor], Tensor], model: Any, first: Tensor, second: Tensor) -> Tensor:
    """The distance of each pair of images, some pairs at a time, in float32 on the model's device."""
    if first.shape != second.shape:
        raise DeepCacheError(f"expected two batches of one shape, got {tuple(first.shape)} and {tuple(second.shape)}")
    device = next(iter(model.parameters())).device
    pairs = zip(*(checked(images).split(_BATCH) for images in (first, second)), strict=True)
    return torch.cat([between(*(images.to(device, torch.float32) for images in pair)) for pair in pairs]).cpu()
