"""Model cards: what an embedded model is, how it was made, and its scores on held-out data."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import torch
from torchvision.utils import save_image

from deepcache.errors import DeepCacheError
from deepcache.metrics import reference
from deepcache.metrics.extractors import extract
from deepcache.metrics.fidelity import as_asked, quality
from deepcache.models import fashion, load, load_extractor
from deepcache.models.train import autoencoder, classifier, denoiser
from deepcache.sampling import labels_of, sample

NUM_SAMPLES = 1_000
NUM_STEPS = 100
GUIDANCE = 1.5
DATA = (
    "Fashion-MNIST (Xiao, Rasul, Vollgraf, 2017; MIT licence), padded to 32 x 32 and painted: 10 garments x 7 colours "
    "x 7 other backgrounds (`deepcache/models/fashion.py`). 60,000 images to train on, the 10,000 of the test split "
    "held out."
)


def write_features_card(held_out: fashion.Painted, runs: Path, out: Path) -> dict[str, float]:
    """Score mini-features as it is shipped and write its card."""
    model, vqvae = load_extractor(), load("mini-ldm").vqvae
    seen = autoencoder.decode(vqvae, autoencoder.encode(vqvae, held_out.images)).clamp(-1, 1)
    scores = {f"{k}_accuracy": v for k, v in classifier.accuracy(model, held_out).items()}
    through = classifier.accuracy(model, fashion.Painted(seen, *held_out[1:]))
    scores |= {f"{k}_accuracy_reconstructed": v for k, v in through.items()}
    size = sum(p.numel() for p in model.parameters())
    text = f"""# mini-features

A residual classifier of {size:,} parameters that stands for Inception where the embedded models are measured: FID,
IS, precision and recall on its {model.config.widths[-1]} pooled features, sFID on the first
{model.config.spatial_channels} channels of its last 8 x 8 map. It is trained on images, their reconstructions by
mini-ldm's autoencoder, blur and noise. Its numbers are not comparable with Inception's.

- data: {DATA}
- made by `python -m deepcache.models.train mini-features`: {_history(runs / "classifier", classifier.BATCH)}
- `reference.safetensors`: moments of the 10,000 held-out images, and 2,000 of their features

{_table(scores)}"""
    _finish(out, text, scores)
    return scores


def write_ldm_card(held_out: fashion.Painted, runs: Path, out: Path) -> dict[str, float]:
    """Sample and score mini-ldm as it is shipped, and write its card with a picture of 100 samples."""
    pipe, extractor = load("mini-ldm"), load_extractor()
    seeds = range(NUM_SAMPLES)
    images = sample(pipe, seeds, batch_size=50, num_inference_steps=NUM_STEPS, guidance_scale=GUIDANCE)
    save_image(images[:100], out / "samples.png", nrow=10, padding=1)
    features = extract(extractor, images)
    scores = {
        "autoencoder_psnr_db": autoencoder.psnr(pipe.vqvae, held_out.images),
        "samples_as_asked": as_asked(features, labels_of(seeds, len(fashion.GARMENTS))),
        **quality(features, reference.load()),
    }
    sizes = {name: sum(p.numel() for p in getattr(pipe, name).parameters()) for name in ("unet", "vqvae")}
    text = f"""# mini-ldm

Class-conditional latent diffusion: a VQ f4 autoencoder ({sizes["vqvae"]:,} parameters, 32 x 32 images to 4 x 8 x 8
latents, {pipe.vqvae.config.num_vq_embeddings:,} codes) and a U-Net ({sizes["unet"]:,} parameters, nine skips) with the
class as cross-attention context, trained with {denoiser.UNCONDITIONAL:.0%} of the classes dropped. It has
LDM-4-G's arrangement and noise schedule, and stands for it.

![100 samples, a garment a column](samples.png)

A garment a column ({", ".join(fashion.GARMENTS)}); seeds 0..99, DDIM {NUM_STEPS} steps, guidance {GUIDANCE}.

- data: {DATA}
- made by `python -m deepcache.models.train mini-ldm`
- autoencoder: {_history(runs / "plain", autoencoder.BATCH)}
- autoencoder with its codebook: {_history(runs / "quantized", autoencoder.BATCH)}
- U-Net: {_history(runs / "denoiser", denoiser.BATCH)}

Of {NUM_SAMPLES:,} uncached samples (DDIM {NUM_STEPS} steps, guidance {GUIDANCE}), measured with mini-features:

{_table(scores)}"""
    _finish(out, text, scores)
    return scores


def _history(run: Path, batch: int) -> str:
    if not (run / "log.jsonl").is_file():
        raise DeepCacheError(f"expected the log of a finished training in {run}; train the model first")
    last = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    losses = [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()[-20:]]
    mean = sum(losses) / len(losses)
    return (
        f"{last['step']:,} steps of {batch} images, {last['seconds'] / 60:.0f} minutes on {torch.get_num_threads()} "
        f"cores ({platform.machine()}), loss {mean:.4f} over the end"
    )


def _table(scores: dict[str, float]) -> str:
    rows = "\n".join(f"| {name.replace('_', ' ')} | {value:.3f} |" for name, value in scores.items())
    return f"| score | value |\n| --- | --- |\n{rows}\n"


def _finish(out: Path, text: str, scores: dict[str, float]) -> None:
    (out / "README.md").write_text(text)
    (out / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
