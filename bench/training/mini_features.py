"""mini-features, trained to see through the autoencoder: on images, reconstructions, blur and noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import VQModel
from safetensors.numpy import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision.transforms.v2.functional import gaussian_blur

from bench.training import fashion, mini_ldm
from bench.training.cards import DATA, Card, num_parameters, trained
from bench.training.trainer import Recipe, kept, seeded, train
from deepcache.metrics.extractors import MiniExtractor, extract
from deepcache.metrics.reference import NUM_FEATURES
from deepcache.metrics.statistics import Statistics
from deepcache.models import load, load_extractor
from deepcache.models.embedded import MiniFeatures

BATCH = 128
RECIPE = Recipe(num_steps=7_000, lr=2e-3, weight_decay=0.05)  # 91 % garments, 99 % colours on held-out images
NUM_RECONSTRUCTED = 30_000


def train_classifier(data: fashion.Garments, vqvae: VQModel, folder: Path) -> MiniFeatures:
    """Train on `data`, with half of each batch as the autoencoder gives it back; resumes from `folder`."""
    seen = _reconstructions(data, vqvae, folder)

    def loss(model: nn.Module, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        painted = fashion.drawn(data, BATCH // 2, step, generator)
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
    """Blur a fifth of the images (B, 3, H, W) in -1..1, and add noise of a standard deviation up to 0.06."""
    count = len(images)
    blurred = torch.rand(count, generator=generator) < 0.2
    images = torch.where(blurred[:, None, None, None], gaussian_blur(images, [5, 5], [0.7, 0.7]), images)
    strength = 0.06 * torch.rand(count, 1, 1, 1, generator=generator)
    return images + strength * torch.randn(images.shape, generator=generator)


def _reconstructions(data: fashion.Garments, vqvae: VQModel, folder: Path) -> fashion.Painted:
    """Return painted images as the autoencoder gives them back, kept in `folder` between runs."""

    def make() -> tuple[Tensor, ...]:
        painted = fashion.paint(data.pick(slice(NUM_RECONSTRUCTED)), seed=1)
        images = mini_ldm.decode(vqvae, mini_ldm.encode(vqvae, painted.images)).clamp(-1, 1)
        return (images.half(), *painted[1:])

    return fashion.Painted(*kept(folder / "reconstructions.pt", make))


@torch.no_grad()
def accuracy(model: MiniFeatures, painted: fashion.Painted) -> dict[str, float]:
    """Share of garments, colours and backgrounds that are recognised, 0..1."""
    found = [model(images) for images in painted.images.split(500)]
    return {
        name: (torch.cat([getattr(f, name) for f in found]).argmax(1) == getattr(painted, name)).float().mean().item()
        for name in ("garment", "colour", "background")
    }


def export(model: MiniFeatures, held_out: fashion.Painted, out: Path) -> None:
    """Write the classifier as the package ships it, and the statistics of the held-out images on it."""
    model.half().save_pretrained(out, variant="fp16", safe_serialization=True)
    features = extract(MiniExtractor(model.float().eval()), (held_out.images + 1) / 2)
    save_reference(Statistics.of([features]), out / "reference.safetensors")


def save_reference(found: Statistics, path: Path) -> None:
    """Write a reference that is small enough to ship: moments in float32, and `NUM_FEATURES` features in float16."""
    tensors = {"features": found.features[:NUM_FEATURES].astype(np.float16)}
    for kind, moments in (("pooled", found.pooled.moments()), ("spatial", found.spatial.moments())):
        tensors[f"{kind}.mean"] = moments.mean.astype(np.float32)
        tensors[f"{kind}.covariance"] = moments.covariance.astype(np.float32)
    save_file(tensors, str(path))


def card(held_out: fashion.Painted, runs: Path) -> Card:
    """Return the card of mini-features as it is shipped: scores on images and on their reconstructions by mini-ldm."""
    history = trained("made by `python -m bench.training mini-features`", runs / "mini-features" / "classifier", BATCH)
    model, vqvae = load_extractor(), load("mini-ldm").vqvae
    seen = mini_ldm.decode(vqvae, mini_ldm.encode(vqvae, held_out.images)).clamp(-1, 1)
    through = accuracy(model, fashion.Painted(seen, *held_out[1:]))
    scores = {f"{k}_accuracy": v for k, v in accuracy(model, held_out).items()}
    scores |= {f"{k}_accuracy_reconstructed": v for k, v in through.items()}
    about = f"""A residual classifier of {num_parameters(model)} parameters that stands for Inception where the embedded
models are measured: FID, IS, precision and recall on its {model.config.widths[-1]} pooled features, sFID on the first
{model.config.spatial_channels} channels of its last 8 x 8 map. It is trained on images, their reconstructions by
mini-ldm's autoencoder, blur and noise. Its numbers are not comparable with Inception's."""
    return Card(
        name="mini-features",
        about=about,
        facts=(
            DATA,
            history,
            "`reference.safetensors`: moments of the 10,000 held-out images, and 2,000 of their features",
        ),
        measured=f"Of the {len(held_out.images):,} held-out images:",
        scores=scores,
    )
