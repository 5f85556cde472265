"""The card of mini-ldm."""

from __future__ import annotations

from pathlib import Path

from bench.training import autoencoder, denoiser
from bench.training.cards.card import DATA, Card, Picture, num_parameters, trained
from bench.training.cards.pictures import tiles
from deepcache.metrics import reference
from deepcache.metrics.extractors import MiniExtractor, extract
from deepcache.metrics.fidelity import as_asked, quality
from deepcache.metrics.statistics import Statistics
from deepcache.models import fashion, load
from deepcache.sampling.conditions import labels_of
from deepcache.sampling.samples import sample

NUM_SAMPLES = 1_000
NUM_STEPS = 100
GUIDANCE = 1.5


def card(held_out: fashion.Painted, runs: Path) -> Card:
    """Samples and scores of mini-ldm as it is shipped."""
    run = runs / "mini-ldm"
    facts = (
        DATA,
        "made by `python -m bench.training mini-ldm`",
        trained("autoencoder", run / "plain", autoencoder.BATCH),
        trained("autoencoder with its codebook", run / "quantized", autoencoder.BATCH),
        trained("U-Net", run / "denoiser", denoiser.BATCH),
    )
    pipe, seeds = load("mini-ldm"), range(NUM_SAMPLES)
    images = sample(pipe, seeds, batch_size=50, num_inference_steps=NUM_STEPS, guidance_scale=GUIDANCE)
    features = extract(MiniExtractor.load(), images)
    about = f"""Class-conditional latent diffusion: a VQ f4 autoencoder ({num_parameters(pipe.vqvae)} parameters,
32 x 32 images to 4 x 8 x 8 latents, {pipe.vqvae.config.num_vq_embeddings:,} codes) and a U-Net
({num_parameters(pipe.unet)} parameters, nine skips) with the class as cross-attention context, trained with
{denoiser.UNCONDITIONAL:.0%} of the classes dropped. It has LDM-4-G's arrangement and noise schedule, and stands for
it."""
    return Card(
        name="mini-ldm",
        about=about,
        facts=facts,
        measured=f"Of {NUM_SAMPLES:,} uncached samples (DDIM {NUM_STEPS} steps, guidance {GUIDANCE}), "
        "measured with mini-features:",
        scores={
            "autoencoder_psnr_db": autoencoder.psnr(pipe.vqvae, held_out.images),
            "samples_as_asked": as_asked(features, labels_of(seeds, len(fashion.GARMENTS))),
            **quality(Statistics.of([features]), reference.load()),
        },
        picture=Picture(
            tiles(images[:100], columns=10),
            "100 samples, a garment a column",
            f"A garment a column ({', '.join(fashion.GARMENTS)}); seeds 0..99, DDIM {NUM_STEPS} steps, "
            f"guidance {GUIDANCE}.",
        ),
    )
