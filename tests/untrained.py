"""Networks of the embedded models' kinds before any training, exported as the trained ones are."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, VQModel

from bench.training import autoencoder, clip_export, contrastive, export, pixels, pruned, text_to_image
from bench.training.tokens import tokenizer
from deepcache.metrics import clip_score
from deepcache.models import architectures, embedded, fashion

WEIGHTS = embedded.WEIGHTS  # the real ones


def garments(count: int = 12) -> fashion.Garments:
    """Bright rectangles for garments."""
    grey = torch.zeros(count, 28, 28, dtype=torch.uint8)
    grey[:, 6:22, 8:20] = torch.randint(100, 256, (count, 16, 12), generator=torch.Generator().manual_seed(0)).byte()
    return fashion.Garments(grey, torch.arange(count) % len(fashion.GARMENTS))


def vqvae() -> VQModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return autoencoder.build().eval()


def vae() -> AutoencoderKL:
    with torch.random.fork_rng():
        return text_to_image._continuous(vqvae()).eval()


def denoiser() -> text_to_image.TextDenoiser:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return text_to_image.TextDenoiser(text_to_image.build_unet(), text_to_image.build_text_encoder()).eval()


def weights(folder: Path) -> None:
    """The new models, untrained, beside the real mini-features and mini-ldm."""
    for name in ("mini-features", "mini-ldm"):
        (folder / name).symlink_to(WEIGHTS / name)
    full = denoiser()
    for size in pruned.SIZES:
        export.export_unet(pruned.prune(full.unet, size), folder / f"mini-bk-{size}")
    export.export_sd(vae(), full, folder / "mini-sd")
    export.export_ddpm(pixels.build(), folder / "mini-ddpm")
    clip_export.export_clip(contrastive.open_clip.CLIP(**contrastive.config()), tokenizer(), folder / "mini-clip")


def use(monkeypatch, folder: Path) -> None:
    """Take `folder` for the package's weights."""
    for module in (embedded, architectures, clip_score):
        monkeypatch.setattr(module, "WEIGHTS", folder)
