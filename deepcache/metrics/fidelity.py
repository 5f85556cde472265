"""Quality against real images, drift from uncached images, and diversity over seeds, by the keys of `METRICS`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepcache.metrics.clip_score import Clip, clip_scores
from deepcache.metrics.distances import Manifold, frechet_distance, psnr
from deepcache.metrics.images import Images, checked
from deepcache.metrics.perceptual import Perceptual
from deepcache.metrics.reference import Reference
from deepcache.metrics.registry import METRICS
from deepcache.metrics.statistics import Features, RunningMoments, Statistics

Errors = NDArray[np.float64]  # mean squared errors (B,) of images in 0..1, an entry for each seed
TIPPED_BELOW_DB = 20.0  # two garments of one kind are some 7 dB apart; a changed outline or pattern is below 20
PSNR_AT_MOST_DB = METRICS["psnr_db"].high
_BATCH = 250  # images that are compared at once
_PAIRS = 32  # pairs of images whose perceptual distance is measured at once


def quality(samples: Statistics, reference: Reference) -> dict[str, float]:
    """Measure samples against real images: `fid`, `sfid`, `is`, and `precision` and `recall` in percent.

    A metric for which the reference lacks a part is left out.

    Raises:
        DeepCacheError: the features are of another extractor than the reference's, or there are too few samples.
    """
    found: dict[str, float] = {}
    if reference.pooled is not None:
        found["fid"] = frechet_distance(samples.pooled.moments(), reference.pooled)
    if reference.spatial is not None:
        found["sfid"] = frechet_distance(samples.spatial.moments(), reference.spatial)
    found["is"] = samples.inception_score
    if reference.features is not None and reference.manifold is not None:
        own = Manifold.of(samples.features, device=reference.device)
        found["precision"] = 100 * reference.manifold.share_within(samples.features)
        found["recall"] = 100 * own.share_within(reference.features)
    return found


def drift(cached: Features, uncached: Features, errors: Errors) -> dict[str, float]:
    """Measure cached samples against uncached ones of the same seeds: `fid_drift`, and as `drift_of_errors`."""
    moments = (RunningMoments.of(features.pooled).moments() for features in (cached, uncached))
    return {"fid_drift": frechet_distance(*moments), **drift_of_errors(errors)}


def drift_of_errors(errors: Errors) -> dict[str, float]:
    """Measure how far images lie from the uncached images of the same seeds, from what `squared_errors` returns.

    Returns:
        `mse` and `psnr_db`, the mean squared error over all images and its PSNR; `psnr_median_db`, the PSNR of the
        median seed; `tipped`, the percentage of seeds that came out as another image; and `psnr_untipped_db`, the PSNR
        of the mean squared error over the remaining seeds, if any remain. A PSNR is at most `PSNR_AT_MOST_DB`.
    """
    is_tipped = tipped(errors)
    found = {"mse": float(errors.mean()), "psnr_db": _psnr(errors.mean()), "psnr_median_db": _psnr(np.median(errors))}
    found["tipped"] = 100 * float(is_tipped.mean())
    if not is_tipped.all():
        found["psnr_untipped_db"] = _psnr(errors[~is_tipped].mean())
    return found


def diversity(images: Tensor, prompt: str, *, clip: Clip, perceptual: Perceptual) -> dict[str, float]:
    """Measure how much images (B, 3, H, W) in 0..1 of one prompt differ, B at least 2, and how well they show it.

    Returns:
        `pairwise_perceptual` and `pairwise_mse`, the mean over all pairs of images; `clip_mean` and `clip_variance`
        (unbiased) of the images' CLIP scores.

    Raises:
        DeepCacheError: fewer than two images, or images of another shape or range.
    """
    checked(images, at_least=2)
    pairs = torch.combinations(torch.arange(len(images)), 2)  # (B (B - 1) / 2, 2)
    distances = [perceptual.distance(images[part[:, 0]], images[part[:, 1]]) for part in pairs.split(_PAIRS)]
    scores = clip_scores(clip, images, [prompt] * len(images))
    return {
        "pairwise_perceptual": float(torch.cat(distances).double().mean()),
        # with s^2 the unbiased variance of a value over the images, the mean over all pairs is 2 s^2
        "pairwise_mse": float(2 * images.double().var(dim=0).mean()),
        "clip_mean": float(scores.mean()),
        "clip_variance": float(scores.var(ddof=1)),
    }


def as_asked(samples: Features, labels: Sequence[int]) -> float:
    """The share of samples, 0..1, whose most probable class is the label (B,) that was asked for."""
    return float((samples.probabilities.argmax(axis=1) == np.asarray(labels)).mean())


def squared_errors(images: Images, uncached_images: Images) -> Errors:
    """The mean squared error (B,) of each image to the uncached image of the same seed."""
    pairs = zip(images.split(_BATCH), uncached_images.split(_BATCH), strict=True)
    return np.concatenate([(a.double() - b.double()).square().flatten(1).mean(dim=1).numpy() for a, b in pairs])


def psnr_each(images: Images, uncached_images: Images) -> list[float]:
    """The PSNR of each image to the uncached image of the same seed, in dB, at most `PSNR_AT_MOST_DB`."""
    return psnr_of(squared_errors(images, uncached_images))


def psnr_of(errors: Errors) -> list[float]:
    """The PSNR of each error, in dB, at most `PSNR_AT_MOST_DB`."""
    return [_psnr(mse) for mse in errors]


def tipped(errors: Errors) -> NDArray[np.bool_]:
    """Return (B,) bool: True where an image became another image (its PSNR is below `TIPPED_BELOW_DB`)."""
    return np.asarray(errors > 10 ** (-TIPPED_BELOW_DB / 10))


def _psnr(mse: float) -> float:
    return min(psnr(float(mse)), PSNR_AT_MOST_DB)
