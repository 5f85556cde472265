"""Perceptual distances: LPIPS if the weights of its backbone are found, else the same construction on mini-features."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize

from deepcache.errors import DeepCacheError, first_line, needs
from deepcache.metrics.images import checked
from deepcache.models import load_extractor
from deepcache.models.checkpoint import contents
from deepcache.models.embedded import SIZE, MiniFeatures

MINI = "mini-features perceptual"
BACKBONES = {"alex": "alexnet", "vgg": "vgg16"}  # a backbone's name in lpips, and its name in torchvision
_BATCH = 32  # pairs of images that are compared at once


class Perceptual(Protocol):
    """A distance between images, under a name that records keep."""

    @property
    def name(self) -> str: ...

    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        """Measure each pair of images.

        Args:
            first, second: (B, 3, H, W) in 0..1.

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

    @torch.no_grad()
    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        device = next(iter(self.model.parameters())).device
        pairs = zip(*(images.split(_BATCH) for images in _alike(first, second)), strict=True)
        found = [self.model(a.float().to(device), b.float().to(device), normalize=True).flatten() for a, b in pairs]
        return torch.cat(found).cpu()


@dataclass(frozen=True, eq=False)
class MiniPerceptual:
    """The construction of LPIPS (Zhang et al., 2018) on mini-features, with no learned weights on its channels.

    f_l (C_l, H_l, W_l) is the map after residual block l of 3, in which the vector at each position has length 1:

        d(a, b) = sum_l mean_{h, w} sum_c (f_l(a) - f_l(b))_{c, h, w}^2

    Distances lie in 0..6: a block ends in a ReLU, so that two unit vectors are at most the root of 2 apart. The network
    takes images in -1..1; `distance` takes images (B, 3, 32, 32) in 0..1. These distances cannot be compared with
    LPIPS.
    """

    model: MiniFeatures
    name: str = MINI

    @torch.no_grad()
    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        if first.shape[-2:] != SIZE:
            raise DeepCacheError(
                f"expected images of 32 x 32 for {self.name}, got shape {tuple(first.shape)}; larger ones are for "
                "LPIPS: give load_perceptual the file of torchvision's AlexNet weights"
            )
        pairs = zip(*(images.split(_BATCH) for images in _alike(first, second)), strict=True)
        return torch.cat([self._between(a, b) for a, b in pairs]).cpu()

    def _between(self, first: Tensor, second: Tensor) -> Tensor:
        maps = zip(self._maps(first), self._maps(second), strict=True)
        layers = [(a - b).square().sum(dim=1).mean(dim=(1, 2)) for a, b in maps]
        return torch.stack(layers).sum(dim=0)

    def _maps(self, images: Tensor) -> list[Tensor]:
        """The map (B, C, H, W) of each block, with a unit vector (or zero, if all channels are) at each position."""
        hidden, found = self.model.stem(images.to(self.model.device, torch.float32) * 2 - 1), []
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
    try:
        with needs("LPIPS", "metrics"):
            import lpips
            import torchvision
    except DeepCacheError:
        if backbone is not None:
            raise
        return _mini(device)
    url = torchvision.models.get_model_weights(BACKBONES[net]).IMAGENET1K_V1.url
    path = backbone or Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if os.path.isfile(path):
        return Lpips(f"LPIPS ({net})", _lpips(lpips, net, path).to(device))
    if backbone is None:
        return _mini(device)
    raise DeepCacheError(f"expected the weights of {BACKBONES[net]} in {path}, which is not there; get them from {url}")


def _mini(device: str | torch.device) -> MiniPerceptual:
    return MiniPerceptual(load_extractor().to(device))


def _lpips(lpips: Any, net: str, path: Path) -> Any:
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")  # lpips calls it in an old way
        model: Any = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    given = contents(path)
    try:
        # lpips cuts torchvision's `features` into slices and keeps their numbers: slice2.3.bias is features.3.bias
        named = {key: given[f"features.{key.split('.', 1)[1]}"] for key in model.net.state_dict()}
        model.net.load_state_dict(named)
    except (KeyError, RuntimeError, TypeError, IndexError) as error:
        raise DeepCacheError(
            f"expected torchvision's weights of {BACKBONES[net]} in {path}, which do not fit ({first_line(error)})"
        ) from error
    return model.eval().requires_grad_(requires_grad=False)


def _alike(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    if first.shape != second.shape:
        raise DeepCacheError(f"expected two batches of one shape, got {tuple(first.shape)} and {tuple(second.shape)}")
    return checked(first), checked(second)
