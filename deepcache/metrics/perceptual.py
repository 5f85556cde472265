"""How different two images look: LPIPS where its backbone's weights are at hand, else the same on mini-features."""

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
BACKBONES = {"alex": "alexnet", "vgg": "vgg16"}  # what lpips calls a backbone: what torchvision does
_BATCH = 32  # pairs compared at once


class Perceptual(Protocol):
    """A distance between images, under a name that a record keeps."""

    @property
    def name(self) -> str: ...

    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        """(B,) float32 on the CPU, of images (B, 3, H, W) in 0..1 and as many others; 0 for equal ones."""


@dataclass(frozen=True, eq=False)
class Lpips:
    """LPIPS of the lpips package, version 0.1. From 0, most pairs below 1; lower is closer.

    The package takes images in -1..1 and then normalises each channel by ImageNet's mean and deviation; `distance`
    takes 0..1 and has the package do both.

    References:
        The Unreasonable Effectiveness of Deep Features as a Perceptual Metric (Zhang et al., 2018),
        https://arxiv.org/abs/1801.03924
    """

    name: str
    model: Any

    @torch.no_grad()
    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        device = next(iter(self.model.parameters())).device
        pairs = zip(*(x.split(_BATCH) for x in _pair(first, second)), strict=True)
        found = [self.model(a.float().to(device), b.float().to(device), normalize=True).flatten() for a, b in pairs]
        return torch.cat(found).cpu()


@dataclass(frozen=True, eq=False)
class MiniPerceptual:
    """The construction of LPIPS (Zhang et al., 2018) on mini-features, with no learned weights on its channels.

    With f_l (C_l, H_l, W_l) the map after residual block l of 3, each position's vector made one of length 1:

        d(a, b) = sum_l mean_{h, w} sum_c (f_l(a) - f_l(b))_{c, h, w}^2

    In 0..6 (a block ends in a ReLU, so two unit vectors are at most the root of 2 apart), lower is closer. The network
    takes images in -1..1; `distance` takes (B, 3, 32, 32) in 0..1. Comparable with itself alone, never with LPIPS.
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
        pairs = zip(*(x.split(_BATCH) for x in _pair(first, second)), strict=True)
        return torch.cat([self._between(a, b) for a, b in pairs]).cpu()

    def _between(self, first: Tensor, second: Tensor) -> Tensor:
        maps = zip(self._maps(first), self._maps(second), strict=True)
        layers = [(a - b).square().sum(dim=1).mean(dim=(1, 2)) for a, b in maps]
        return torch.stack(layers).sum(dim=0)

    def _maps(self, images: Tensor) -> list[Tensor]:
        """Of each block, (B, C, H, W), a unit vector everywhere; zero where all channels are."""
        hidden, found = self.model.stem(images.to(self.model.device, torch.float32) * 2 - 1), []
        for block in self.model.blocks:
            hidden = block(hidden)
            found.append(normalize(hidden, dim=1))
        return found


def load_perceptual(
    backbone: Path | None = None, *, net: str = "alex", device: str | torch.device = "cpu"
) -> Perceptual:
    """LPIPS where the backbone's weights are found, else `MiniPerceptual`; nothing is ever downloaded.

    Args:
        backbone: the file that torchvision keeps its ImageNet weights in; if not given, torch.hub's cache is looked
            at. LPIPS's own learned weights come with its package.
        net: "alex" or "vgg".
        device: where the network runs.

    Raises:
        DeepCacheError: no such net; or a file was given and lpips is not installed, or the file does not fit.
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
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")  # of how lpips calls it
        model: Any = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    given = contents(path)
    try:
        # lpips cuts torchvision's `features` into slices, and keeps their numbers: slice2.3.bias is features.3.bias
        named = {key: given[f"features.{key.split('.', 1)[1]}"] for key in model.net.state_dict()}
        model.net.load_state_dict(named)
    except (KeyError, RuntimeError, TypeError, IndexError) as error:
        raise DeepCacheError(
            f"expected torchvision's weights of {BACKBONES[net]} in {path}, which do not fit ({first_line(error)})"
        ) from error
    return model.eval().requires_grad_(requires_grad=False)


def _pair(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    if first.shape != second.shape:
        raise DeepCacheError(f"expected two batches of one shape, got {tuple(first.shape)} and {tuple(second.shape)}")
    return checked(first), checked(second)
