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
from deepcache.metrics.registry import ALEXNET_FILE, ALEXNET_URL, in_torch_cache
from deepcache.models.checkpoint import contents
from deepcache.models.embedded import SIZE, MiniFeatures, load_extractor

MINI = "mini-features perceptual"
_BATCH = 32  # pairs of images that are compared at once


class Perceptual(Protocol):
    """A distance between images, under a name that records keep."""

    @property
    def name(self) -> str: ...

    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        """The distance (B,), float32 on the CPU, of each pair of images (B, 3, H, W) in 0..1; 0 for equal images."""


@dataclass(frozen=True, eq=False)
class Lpips:
    """LPIPS, version 0.1, by the package lpips; most distances stay below 1.

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
        a, b = (self.model.stem(images * 2 - 1) for images in (first, second))  # the network takes images in -1..1
        found = []
        for block in self.model.blocks:
            a, b = block(a), block(b)  # (B, C, H, W); where all channels are 0, there is no unit vector but 0
            found.append((normalize(a, dim=1) - normalize(b, dim=1)).square().sum(dim=1).mean(dim=(1, 2)))
        return torch.stack(found).sum(dim=0)


def load_perceptual(backbone: Path | None = None, *, device: str | torch.device = "cpu") -> Perceptual:
    """Load LPIPS if the weights of its backbone are found, else `MiniPerceptual`; nothing is downloaded.

    Args:
        backbone: torchvision's file of AlexNet's ImageNet weights; if not given, the file in torch.hub's cache.
        device: where the network runs.

    Raises:
        DeepCacheError: a file was given, and lpips is not installed or the file is not there or does not fit.
    """
    path = backbone or in_torch_cache(ALEXNET_FILE)
    is_there = os.path.isfile(path)
    if backbone is None and not (is_there and find_spec("lpips") and find_spec("torchvision")):
        return MiniPerceptual(load_extractor().to(device))
    with needs("LPIPS", "metrics"):
        import lpips
    if not is_there:
        raise DeepCacheError(f"expected AlexNet's weights in {path}, which is not there; get them from {ALEXNET_URL}")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")  # lpips calls it in an old way
        model: Any = lpips.LPIPS(pnet_rand=True, verbose=False)
    given = contents(path)
    with readable(path, "torchvision's weights of alexnet", "do not fit"):
        # lpips cuts torchvision's `features` into slices and keeps their numbers: slice2.3.bias is features.3.bias
        named = {key: given[f"features.{key.split('.', 1)[1]}"] for key in model.net.state_dict()}
        model.net.load_state_dict(named)
    return Lpips("LPIPS (alex)", model.eval().requires_grad_(requires_grad=False).to(device))


@torch.no_grad()
def _compared(between: Callable[[Tensor, Tensor], Tensor], model: Any, first: Tensor, second: Tensor) -> Tensor:
    """The distance of each pair of images, some pairs at a time, in float32 on the model's device."""
    if first.shape != second.shape:
        raise DeepCacheError(f"expected two batches of one shape, got {tuple(first.shape)} and {tuple(second.shape)}")
    device = next(iter(model.parameters())).device
    pairs = zip(*(checked(images).split(_BATCH) for images in (first, second)), strict=True)
    return torch.cat([between(*(images.to(device, torch.float32) for images in pair)) for pair in pairs]).cpu()
