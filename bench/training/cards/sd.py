"""The card of mini-sd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from bench.training import text_to_image
from bench.training.cards import prompted
from bench.training.cards.card import DATA, Card, num_parameters, table, trained
from bench.training.tokens import LENGTH
from deepcache.metrics.distances import psnr
from deepcache.models import fashion, load

GUIDANCES = (3.0, 5.0, 7.5)


def card(held_out: fashion.Painted, runs: Path) -> Card:
    """Samples and scores of mini-sd as it is shipped, at each guidance, and which is the best."""
    run = runs / "mini-sd"
    facts = (
        DATA,
        "captions: garment, colour and background (`deepcache/models/captions.py`), 490 in all; "
        f"{text_to_image.UNCONDITIONAL:.0%} of them dropped in training, for guidance. Those of the scores below are "
        "among them: the seeds are new to the model, the captions are not",
        "made by `python -m bench.training mini-sd`",
        trained(
            "autoencoder, from mini-ldm's without its codebook", run / "autoencoder", text_to_image.AUTOENCODER_BATCH
        ),
        trained("U-Net and text encoder, from nothing", run / "denoiser", text_to_image.BATCH),
    )
    pipe = load("mini-sd")
    found = {guidance: prompted.prompted(pipe, guidance) for guidance in GUIDANCES}
    by_guidance = {guidance: samples.scores() for guidance, samples in found.items()}
    best = best_guidance(by_guidance)
    about = f"""Text-conditional latent diffusion in a `StableDiffusionPipeline`: a KL f4 autoencoder
({num_parameters(pipe.vae)} parameters, 32 x 32 images to 4 x 8 x 8 latents), a CLIP text encoder of two layers
({num_parameters(pipe.text_encoder)} parameters, prompts of at most {LENGTH} tokens) and a U-Net
({num_parameters(pipe.unet)} parameters, nine skips). It has Stable Diffusion's arrangement, and stands for version 1.5.
It knows the captions' words alone: say "{found[best].subjects[0]}"."""
    names = tuple(by_guidance[best])
    rows: list[tuple[Any, ...]] = [(f"{g:g}", *scores.values()) for g, scores in by_guidance.items()]
    return Card(
        name="mini-sd",
        about=about,
        facts=facts,
        measured=f"Of {prompted.NUM_SAMPLES} uncached samples (PLMS {prompted.NUM_STEPS} steps, guidance {best:g}), "
        "their contents by mini-features, the clip score by mini-clip:",
        scores={
            "guidance": best,
            **by_guidance[best],
            "autoencoder_psnr_db": autoencoder_psnr(pipe.vae, held_out.images),
            "by_guidance": {f"{g:g}": scores for g, scores in by_guidance.items()},
        },
        picture=found[best].picture("samples of mini-sd, each above its prompt", best),
        more=f"Guidance {best:g} has the most samples with garment, colour and background as asked for:\n\n"
        + table(("guidance", *(name.replace("_", " ") for name in names)), rows)
        + "\n\nThe benches take guidance 3 all the same: they compare cached with uncached samples of one guidance, "
        "for which the best score is not needed, and it keeps clear of 7.5, where so small a model paints too "
        "strongly.",
    )


def best_guidance(by_guidance: dict[float, dict[str, float]]) -> float:
    """With the most samples that are as asked for in all; of equals, with the highest CLIP score."""
    return max(by_guidance, key=lambda g: (by_guidance[g]["all_as_asked"], by_guidance[g]["clip_score"]))


@torch.no_grad()
def autoencoder_psnr(vae: Any, images: Tensor, *, batch: int = 250) -> float:
    """Of the reconstructions of images in -1..1, in dB, from the mean squared error over all images."""
    decoded = [vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1) for x in images.split(batch)]
    return psnr(mse_loss(torch.cat(decoded), images).item(), peak=2)
