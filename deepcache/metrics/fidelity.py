"""The metrics of a set of images: quality against real images, change against uncached images, variety over seeds.

`registry.METRICS` names, for each metric, its function in this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepcache.metrics.clip_score import Clip, clip_scores
from deepcache.metrics.distances import Manifold, frechet_distance, moments, psnr
from deepcache.metrics.extractors import Features
from deepcache.metrics.images import Images, checked
from deepcache.metrics.perceptual import Perceptual
from deepcache.metrics.reference import Reference
from deepcache.metrics.registry import METRICS, measured
from deepcache.metrics.statistics import Statistics

Errors = NDArray[np.float64]  # mean squared errors (B,) of images in 0..1, an entry for each seed
TIPPED_BELOW_DB = 20.0  # two garments of one kind are some 7 dB apart; a changed outline or pattern is below 20
PSNR_AT_MOST_DB = METRICS["psnr_db"].high
_BATCH = 250  # images that are compared at once
_PAIRS = 32  # pairs of images whose perceptual distance is measured at once


@dataclass(frozen=True, eq=False)
class Varied:
    """Images (B, 3, H, W) of one prompt, with the perceptual distance (P,) of each pair, and CLIP scores (B,)."""

    images: Tensor
    distances: Tensor
    scores: NDArray[np.float64]


def quality(samples: Statistics, reference: Reference) -> dict[str, float]:
    """Measure samples against real images.

    Args:
        samples: statistics of the samples.
        reference: what is known of the real images, by the same extractor.

    Returns:
        `fid`, `sfid` and `is`, and `precision` and `recall` in percent, without the metrics for which the reference
        lacks a part.

    Raises:
        DeepCacheError: the samples' features are not as long as the reference's, or there are too few samples.
    """
    return measured("reference", samples, reference)


def drift(cached: Features, uncached: Features, errors: Errors) -> dict[str, float]:
    """Measure how far cached samples lie from the uncached samples of the same seeds.

    Args:
        cached, uncached: features of the images.
        errors: what `squared_errors` returns for the images.

    Returns:
        `fid_drift`, the Fréchet distance between the two sets, and what `drift_of_images` returns.
    """
    return measured("features", cached, uncached) | measured("errors", errors)


def drift_of_images(cached_images: Images, uncached_images: Images) -> dict[str, float]:
    """Measure how far cached images lie from the uncached images of the same seeds.

    Args:
        cached_images, uncached_images: (B, 3, H, W) in 0..1.

    Returns:
        `mse` and `psnr_db`, the mean squared error over all images and its PSNR; `psnr_median_db`, the PSNR of the
        median seed; `tipped`, the percentage of seeds that came out as another image; and `psnr_untipped_db`, the PSNR
        of the mean squared error over the remaining seeds, if any remain. A PSNR is at most `PSNR_AT_MOST_DB`.
    """
    return measured("errors", squared_errors(cached_images, uncached_images))


def diversity(images: Tensor, prompt: str, *, clip: Clip, perceptual: Perceptual) -> dict[str, float]:
    """Measure how much the images of one prompt differ from seed to seed, and how well they show the prompt.

    Args:
        images: (B, 3, H, W) in 0..1, B at least 2.
        prompt: the prompt of all images.
        clip: a model that `load_clip` returns.
        perceptual: a distance that `load_perceptual` returns.

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
    return measured("one prompt", Varied(images, torch.cat(distances), scores))


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
    """Whether each image (B,) came out as another image: its PSNR is below `TIPPED_BELOW_DB`."""
    return np.asarray(errors > 10 ** (-TIPPED_BELOW_DB / 10))


def fid(samples: Statistics, reference: Reference) -> float | None:
    return None if reference.pooled is None else frechet_distance(samples.pooled.moments(), reference.pooled)


def sfid(samples: Statistics, reference: Reference) -> float | None:
    return None if reference.spatial is None else frechet_distance(samples.spatial.moments(), reference.spatial)


def inception_score(samples: Statistics, _reference: Reference) -> float:
    return samples.inception_score


def precision(samples: Statistics, reference: Reference) -> float | None:
    """The percentage of samples that lie within the manifold of the real images."""
    return None if reference.manifold is None else 100 * reference.manifold.share_within(samples.features)


def recall(samples: Statistics, reference: Reference) -> float | None:
    """The percentage of real images that lie within the manifold of the samples."""
    if reference.features is None:
        return None
    return 100 * Manifold.of(samples.features, device=reference.device).share_within(reference.features)


def fid_drift(cached: Features, uncached: Features) -> float:
    return frechet_distance(moments(cached.pooled), moments(uncached.pooled))


def mean(values: NDArray[np.float64]) -> float:
    return float(values.mean())


def median(values: NDArray[np.float64]) -> float:
    return float(np.median(values))


def psnr_of_mean_error(errors: Errors) -> float:
    return _psnr(errors.mean())


def psnr_of_median_error(errors: Errors) -> float:
    return _psnr(np.median(errors))


def tipped_share(errors: Errors) -> float:
    return 100 * float(tipped(errors).mean())


def psnr_of_untipped(errors: Errors) -> float | None:
    rest = errors[~tipped(errors)]
    return _psnr(rest.mean()) if rest.size else None


def pairwise_mean(varied: Varied) -> float:
    return float(varied.distances.double().mean())


def pairwise_mse(varied: Varied) -> float:
    """The mean squared error over all pairs: 2 s^2, with s^2 the unbiased variance of a value over the images."""
    return float(2 * varied.images.double().var(dim=0).mean())


def clip_mean(varied: Varied) -> float:
    return float(varied.scores.mean())


def clip_variance(varied: Varied) -> float:
    return float(varied.scores.var(ddof=1))


def _psnr(mse: float) -> float:
    return min(psnr(float(mse)), PSNR_AT_MOST_DB)
