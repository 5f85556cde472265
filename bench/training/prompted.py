"""This module samples a text-to-image model with captions, and counts the samples that show what the caption says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.training.cards import Picture, captioned
from deepcache.metrics.clip_score import clip_scores, load_clip
from deepcache.models import captions, load_extractor
from deepcache.sampling.samples import sample

NUM_SAMPLES = 100
NUM_SHOWN = 30
NUM_STEPS = 50  # of PLMS, the scheduler of the pipelines


@dataclass(frozen=True, eq=False)
class Prompted:
    """`images` (B, 3, H, W) in 0..1 that were asked to show `subjects`."""

    images: Tensor
    subjects: Sequence[captions.Subject]

    def scores(self) -> dict[str, float]:
        """Return shares of images as asked for, 0..1, by mini-features, and the mean CLIP score by mini-clip."""
        found = asked_for(load_extractor(), self.images, self.subjects)
        each = clip_scores(load_clip(), self.images, list(map(str, self.subjects)))
        return {**found, "clip_score": float(each.mean())}

    def picture(self, alt: str, guidance: float) -> Picture:
        """Return the first images with their prompts."""
        shown = min(NUM_SHOWN, len(self.images))
        return Picture(
            captioned(self.images[:shown], list(map(str, self.subjects)), columns=6),
            alt,
            f"Seeds 0..{shown - 1}, not chosen, PLMS {NUM_STEPS} steps, guidance {guidance:g}; "
            "the prompt is beneath each.",
        )


def prompted(pipe: Any, guidance: float) -> Prompted:
    """Return uncached samples of the seeds 0..`NUM_SAMPLES` - 1, each with the caption of its seed."""
    images = sample(
        pipe,
        range(NUM_SAMPLES),
        batch_size=50,
        description=f"guidance {guidance:g}",
        num_inference_steps=NUM_STEPS,
        guidance_scale=guidance,
    )
    return Prompted(images, [captions.subject_of(seed) for seed in range(NUM_SAMPLES)])


@torch.no_grad()
def asked_for(extractor: Any, images: Tensor, subjects: Sequence[captions.Subject]) -> dict[str, float]:
    """Share of images with the right garment, the right colour, the right background, and all three, 0..1."""
    found = extractor(images * 2 - 1)
    asked = torch.tensor(subjects)  # (B, 3)
    shown = torch.stack([found.garment.argmax(1), found.colour.argmax(1), found.background.argmax(1)], dim=1)
    right = shown == asked
    shares = {
        f"{name}_as_asked": right[:, column].float().mean().item()
        for column, name in enumerate(captions.Subject._fields)
    }
    return {**shares, "all_as_asked": right.all(dim=1).float().mean().item()}
