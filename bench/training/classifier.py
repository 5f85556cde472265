"""mini-features, trained to see through the autoencoder: on images, reconstructions, blur and noise."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import VQModel
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision.transforms.v2.functional import gaussian_blur

from bench.training import autoencoder
from bench.training.trainer import Recipe, kept, seeded, train
from deepcache.models import fashion
from deepcache.models.mini_features import MiniFeatures

BATCH = 128
RECIPE = Recipe(num_steps=7_000, lr=2e-3, weight_decay=0.05)  # 91 % garments, 99 % colours on held-out images
NUM_RECONSTRUCTED = 30_000


def train_classifier(data: fashion.Garments, vqvae: VQModel, folder: Path) -> MiniFeatures:
    """Train on `data`, half of each batch as the autoencoder shows it; resumes from `folder`."""
    seen = _reconstructions(data, vqvae, folder)

    def loss(model: nn.Module, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        drawn = torch.randint(len(data.grey), (BATCH // 2,), generator=generator)
        painted = fashion.paint(data.pick(drawn), seed=step)
        chosen = torch.randint(len(seen.images), (BATCH // 2,), generator=generator)
        both = fashion.Painted(*(torch.cat([a, b[chosen].to(a.dtype)]) for a, b in zip(painted, seen, strict=True)))
        images = augment(both.images, generator)
        with torch.autocast("cpu", torch.bfloat16):
            found = model(images)
        return (
            cross_entropy(found.garment.float(), both.garment, label_smoothing=0.05)
            + 0.5 * cross_entropy(found.colour.float(), both.colour)
            + 0.25 * cross_entropy(found.background.float(), both.background)
        )

    with seeded():
        model: MiniFeatures = train(MiniFeatures(), loss, RECIPE, folder / "classifier")
    return model


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blur a fifth, and add noise of a standard deviation up to 0.06 (of the range -1..1)."""
    count = len(images)
    blurred = torch.rand(count, generator=generator) < 0.2
    images = torch.where(blurred[:, None, None, None], gaussian_blur(images, [5, 5], [0.7, 0.7]), images)
    strength = 0.06 * torch.rand(count, 1, 1, 1, generator=generator)
    return images + strength * torch.randn(images.shape, generator=generator)


def _reconstructions(data: fashion.Garments, vqvae: VQModel, folder: Path) -> fashion.Painted:
    """Painted images as the autoencoder gives them back, kept in `folder` between runs."""

    def make() -> tuple[Tensor, ...]:
        painted = fashion.paint(data.pick(slice(NUM_RECONSTRUCTED)), seed=1)
        images = autoencoder.decode(vqvae, autoencoder.encode(vqvae, painted.images)).clamp(-1, 1)
        return (images.half(), *painted[1:])

    return fashion.Painted(*kept(folder / "reconstructions.pt", make))


@torch.no_grad()
def accuracy(model: MiniFeatures, painted: fashion.Painted) -> dict[str, float]:
    """Share of garments, colours and backgrounds recognised, 0..1."""
    found = [model(images) for images in painted.images.split(500)]
    return {
        name: (torch.cat([getattr(f, name) for f in found]).argmax(1) == getattr(painted, name)).float().mean().item()
        for name in ("garment", "colour", "background")
    }
