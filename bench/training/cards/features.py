"""The card of mini-features."""

from __future__ import annotations

from pathlib import Path

from bench.training import autoencoder, classifier
from bench.training.cards.card import DATA, Card, num_parameters, trained
from deepcache.models import fashion, load, load_extractor


def card(held_out: fashion.Painted, runs: Path) -> Card:
    """Scores of mini-features as it is shipped: on images, and on what mini-ldm's autoencoder makes of them."""
    history = trained(
        "made by `python -m bench.training mini-features`",
        runs / "mini-features" / "classifier",
        classifier.BATCH,
    )
    model, vqvae = load_extractor(), load("mini-ldm").vqvae
    seen = autoencoder.decode(vqvae, autoencoder.encode(vqvae, held_out.images)).clamp(-1, 1)
    through = classifier.accuracy(model, fashion.Painted(seen, *held_out[1:]))
    scores = {f"{k}_accuracy": v for k, v in classifier.accuracy(model, held_out).items()}
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
