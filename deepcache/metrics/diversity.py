"""How much the images of one prompt differ from seed to seed, and how well each shows it."""

from __future__ import annotations

import torch
from torch import Tensor

from deepcache.metrics.clip_score import Clip, clip_scores
from deepcache.metrics.images import checked
from deepcache.metrics.perceptual import Perceptual

_BATCH = 32  # pairs gathered at once


def diversity(images: Tensor, prompt: str, *, clip: Clip, perceptual: Perceptual) -> dict[str, float]:
    """Of several seeds of one prompt, as plain numbers.

    `pairwise_perceptual` and `pairwise_mse`: the mean over all pairs of images, higher is more diverse; the mean
    squared error is 2 s^2, with s^2 the unbiased variance of a value over the images. `clip_mean` and `clip_variance`
    (unbiased): of the images' CLIP scores.

    Args:
        images: (B, 3, H, W) in 0..1, B at least 2.
        prompt: of all of them.
        clip: what `load_clip` gives.
        perceptual: what `load_perceptual` gives.
    """
    checked(images, at_least=2)
    pairs = torch.combinations(torch.arange(len(images)), 2)  # (B (B - 1) / 2, 2)
    distances = [perceptual.distance(images[part[:, 0]], images[part[:, 1]]) for part in pairs.split(_BATCH)]
    scores = clip_scores(clip, images, [prompt] * len(images))
    return {
        "pairwise_perceptual": float(torch.cat(distances).double().mean()),
        "pairwise_mse": float(2 * images.double().var(dim=0).mean()),
        "clip_mean": float(scores.mean()),
        "clip_variance": float(scores.var(ddof=1)),
    }
