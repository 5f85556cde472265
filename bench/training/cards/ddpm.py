"""The card of mini-ddpm."""

from __future__ import annotations

from pathlib import Path

from bench.training import pixels
from bench.training.cards.card import DATA, Card, Picture, num_parameters, trained
from bench.training.cards.pictures import tiles
from deepcache.metrics import reference
from deepcache.metrics.extractors import MiniExtractor, extract
from deepcache.metrics.fidelity import quality
from deepcache.metrics.statistics import Statistics
from deepcache.models import fashion, load
from deepcache.sampling.samples import sample

NUM_SAMPLES = 150
NUM_STEPS = 100


def card(_held_out: fashion.Painted, runs: Path) -> Card:
    """Samples and scores of mini-ddpm as it is shipped."""
    history = trained("U-Net", runs / "mini-ddpm" / "denoiser", pixels.BATCH)
    pipe = load("mini-ddpm")
    images = sample(pipe, range(NUM_SAMPLES), batch_size=50, num_inference_steps=NUM_STEPS)
    about = f"""Unconditional diffusion in pixel space: a U-Net ({num_parameters(pipe.unet)} parameters, four levels,
twelve skips, attention at 8 x 8) on 32 x 32 images. It has DDPM's arrangement and noise schedule, and stands for DDPM
on CIFAR-10 and LSUN."""
    return Card(
        name="mini-ddpm",
        about=about,
        facts=(DATA, "made by `python -m bench.training mini-ddpm`", history),
        measured=f"Of {NUM_SAMPLES:,} uncached samples (DDIM {NUM_STEPS} steps), measured with mini-features against "
        "the 10,000 held-out images:",
        scores=quality(Statistics.of([extract(MiniExtractor.load(), images)]), reference.load()),
        picture=Picture(
            tiles(images[:100], columns=10),
            "100 samples of coloured garments",
            f"Seeds 0..{min(NUM_SAMPLES, 100) - 1}, not chosen, DDIM {NUM_STEPS} steps.",
        ),
    )
