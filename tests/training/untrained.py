"""The networks of the embedded models before any training, exported as the trained networks are."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, VQModel

from bench.training import fashion, mini_bk, mini_clip, mini_ddpm, mini_ldm, mini_sd
from bench.training.tokens import tokenizer
from deepcache.metrics import clip_score
from deepcache.models import embedded
from deepcache.models.captions import GARMENTS

WEIGHTS = embedded.WEIGHTS  # the real ones


def garments(count: int = 12) -> fashion.Garments:
    """Garments that are bright rectangles."""
    grey = torch.zeros(count, 28, 28, dtype=torch.uint8)
    grey[:, 6:22, 8:20] = torch.randint(100, 256, (count, 16, 12), generator=torch.Generator().manual_seed(0)).byte()
    return fashion.Garments(grey, torch.arange(count) % len(GARMENTS))


def vqvae() -> VQModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return mini_ldm.build_autoencoder().eval()


def vae() -> AutoencoderKL:
    with torch.random.fork_rng():
        return mini_sd.continuous(vqvae()).eval()


def denoiser() -> mini_sd.TextDenoiser:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return mini_sd.TextDenoiser(mini_sd.build_unet(), mini_sd.build_text_encoder()).eval()


def weights(folder: Path) -> None:
    """Write untrained models into `folder`, beside links to the real mini-features and mini-ldm."""
    for name in ("mini-features", "mini-ldm"):
        (folder / name).symlink_to(WEIGHTS / name)
    full = denoiser()
    for size in mini_bk.SIZES:
        mini_bk.export(mini_bk.prune(full.unet, size), folder / f"mini-bk-{size}")
    mini_sd.export(vae(), full, folder / "mini-sd")
    mini_ddpm.export(mini_ddpm.build(), folder / "mini-ddpm")
    mini_clip.export(mini_clip.open_clip.CLIP(**mini_clip.config()), tokenizer(), folder / "mini-clip")


def use(monkeypatch, folder: Path) -> None:
    """Make the package look for its weights in `folder`."""
    for module in (embedded, clip_score, mini_bk):
        monkeypatch.setattr(module, "WEIGHTS", folder)
