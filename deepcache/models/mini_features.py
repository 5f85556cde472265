"""mini-features: the small classifier that stands for Inception when embedded models are measured."""

from __future__ import annotations

from typing import NamedTuple

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

SIZE = (32, 32)  # of the images that it was trained on


class Extracted(NamedTuple):
    """Features of B images: `pooled` (B, D), `spatial` (B, S), logits of `garment`, `colour`, `background`."""

    pooled: Tensor
    spatial: Tensor
    garment: Tensor
    colour: Tensor
    background: Tensor


class MiniFeatures(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A residual network for 3 x 32 x 32 images in -1..1.

    `pooled` is the last map's mean over space, the place of Inception's pool_3; `spatial` is that map's first
    `spatial_channels` channels, 8 x 8 each, the place of mixed_6/conv's first 7.
    """

    @register_to_config
    def __init__(
        self,
        widths: tuple[int, ...] = (32, 64, 128),
        spatial_channels: int = 4,  # noqa: ARG002 (kept in the config)
        num_garments: int = 10,
        num_colours: int = 7,
        num_backgrounds: int = 8,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 3, padding=1)
        pairs = zip((widths[0], *widths[:-1]), widths, strict=True)
        self.blocks = nn.ModuleList(_Residual(a, b, stride=1 if i == 0 else 2) for i, (a, b) in enumerate(pairs))
        self.garment = nn.Linear(widths[-1], num_garments)
        self.colour = nn.Linear(widths[-1], num_colours)
        self.background = nn.Linear(widths[-1], num_backgrounds)

    def forward(self, images: Tensor) -> Extracted:
        hidden = self.stem(images)
        for block in self.blocks:
            hidden = block(hidden)  # (B, C, 32, 32) down to (B, C, 8, 8)
        pooled = hidden.mean(dim=(2, 3))
        spatial = hidden[:, : self.config.spatial_channels].flatten(1)
        return Extracted(pooled, spatial, self.garment(pooled), self.colour(pooled), self.background(pooled))


class _Residual(nn.Module):
    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(outer, outer, 3, 1, 1, bias=False), nn.BatchNorm2d(outer))
        self.shortcut = nn.Identity() if inner == outer and stride == 1 else nn.Conv2d(inner, outer, 1, stride)

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.relu(self.second(self.first(hidden)) + self.shortcut(hidden))
