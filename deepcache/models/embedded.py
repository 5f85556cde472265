"""The embedded models: small, truly trained, and part of the package; each has its card in `weights/NAME`."""

from __future__ import annotations

from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from deepcache.errors import DeepCacheError, shown
from deepcache.models.registry import MODELS
from deepcache.plan import CachePlan
from deepcache.unets.pipelines import unet_of

WEIGHTS = Path(__file__).parent / "weights"
PLANS = Path(__file__).parent / "plans"
EXTRACTOR = "mini-features"
SIZE = (32, 32)  # height and width of the images that mini-features was trained on


def folder_of(name: str) -> Path:
    """The folder with the weights of an embedded model; there is a `DeepCacheError` where it is missing."""
    folder = WEIGHTS / name
    if not folder.is_dir():
        raise DeepCacheError(f"expected the weights of {name} in {folder}, which is not there; reinstall the package")
    return folder


def is_embedded(pipe: Any) -> bool:
    """Return True if a pipeline's U-Net is from this package, so that it draws garments by caption."""
    return WEIGHTS in Path(unet_of(pipe)[1].config.get("_name_or_path") or "").parents


def recommended(model: str, scheduler: str, num_steps: int, guidance_scale: float | None = None) -> CachePlan:
    """The plan that was nearest to the uncached images among those that cost no more than reuse at interval 3.

        plan = deepcache.models.recommended("mini-ldm", "ddim", 50)

    `scheduler` is the name of a solver, one of `deepcache.sampling.schedulers.SCHEDULERS`. `guidance_scale` is that of
    the model's protocol if not given. Where no plan was found, a `DeepCacheError` names the plans that there are.
    """
    path = plan_path(model, scheduler, num_steps, guidance_scale)
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in PLANS.glob("*.json")))
        raise DeepCacheError(f"expected a plan out of {known}; got {path.stem}; deepcache.tune finds others")
    return CachePlan.load(path)


def plan_path(model: str, scheduler: str, num_steps: int, guidance_scale: float | None = None) -> Path:
    """The file of the plan that is recommended; its name has the guidance scale unless it is the protocol's."""
    if not isinstance(guidance_scale, (float, int, NoneType)):
        raise DeepCacheError(f"expected guidance_scale to be a number, got {shown(guidance_scale)}")
    is_own = guidance_scale is None or (model in MODELS and guidance_scale == MODELS[model].protocol.guidance_scale)
    return PLANS / f"{model}-{scheduler}-{num_steps}{'' if is_own else f'-guidance-{guidance_scale:g}'}.json"


class Extracted(NamedTuple):
    """What mini-features says of B images."""

    pooled: Tensor  # (B, D) features
    spatial: Tensor  # (B, S) features
    garment: Tensor  # (B, 10) logits
    colour: Tensor  # (B, 7) logits
    background: Tensor  # (B, 8) logits


class MiniFeatures(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """The classifier that stands for Inception: a residual network for images (B, 3, 32, 32) in -1..1.

    `pooled` is the mean of the last map over space, as Inception's pool_3 is; `spatial` is the first
    `spatial_channels` channels of that map, 8 x 8 each, as the first 7 channels of Inception's mixed_6/conv are.
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


def load_extractor() -> MiniFeatures:
    """mini-features, the extractor that the embedded models are measured with, in float32 on the CPU."""
    folder = folder_of(EXTRACTOR)
    return MiniFeatures.from_pretrained(folder, variant="fp16", low_cpu_mem_usage=False)  # type: ignore[no-any-return]
