"""Distances between sets of features, as pure functions of arrays."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from deepcache.errors import DeepCacheError
from deepcache.metrics.moments import Moments

Array = NDArray[np.floating]
_BLOCK = 2_000  # rows of a distance matrix held at once


def frechet_distance(first: Moments, second: Moments) -> float:
    """Between two Gaussians: |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)). FID on pooled features, sFID on spatial.

    In 0..inf, lower is closer. The trace of the root is the sum of the roots of the eigenvalues of
    S1^(1/2) S2 S1^(1/2), which are real and not negative.

    References:
        GANs Trained by a Two Time-Scale Update Rule (Heusel et al., 2017), https://arxiv.org/abs/1706.08500
    """
    if first.mean.shape != second.mean.shape:
        raise DeepCacheError(
            f"expected features of one length, got {first.mean.size} and {second.mean.size}; "
            "use one extractor for both sides"
        )
    values, vectors = np.linalg.eigh(first.covariance)
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ second.covariance @ root).clip(min=0)).sum()
    between = np.sum((first.mean - second.mean) ** 2)
    distance = between + np.trace(first.covariance) + np.trace(second.covariance) - 2 * shared
    return max(0.0, float(distance))


def inception_score(probabilities: Array, *, num_splits: int = 1) -> float:
    """exp of the mean divergence KL(p(y|x) || p(y)), the mean over contiguous splits.

    In 1..number of classes, higher is sharper and more diverse.

    Args:
        probabilities: (B, K), rows that sum to 1.
        num_splits: at least 1.

    References:
        Improved Techniques for Training GANs (Salimans et al., 2016), https://arxiv.org/abs/1606.03498
    """
    scores = []
    for part in np.array_split(np.asarray(probabilities, np.float64), num_splits):
        marginal = part.mean(axis=0, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(part > 0, part * (np.log(part) - np.log(marginal)), 0.0)
        scores.append(math.exp(terms.sum(axis=1).mean()))
    return float(np.mean(scores))


def precision_recall(reference: Array, samples: Array, *, k: int = 3) -> tuple[float, float]:
    """Share of samples inside the reference's manifold, and of references inside the samples'.

    Both in 0..1, higher is better. A set's manifold is the union of balls around its points, each as wide as
    the distance to its k-th nearest neighbour in the set.

    Args:
        reference: (M, D), M > k.
        samples: (B, D), B > k.
        k: neighbours, 3 in the paper.

    References:
        Improved Precision and Recall Metric for Assessing Generative Models (Kynkäänniemi et al., 2019),
        https://arxiv.org/abs/1904.06991
    """
    if min(len(reference), len(samples)) <= k:
        raise DeepCacheError(f"expected more than k = {k} features a side, got {len(reference)} and {len(samples)}")
    real, fake = (torch.as_tensor(np.asarray(x, np.float64)) for x in (reference, samples))
    return _share_covered(real, fake, k), _share_covered(fake, real, k)


def _share_covered(centers: torch.Tensor, points: torch.Tensor, k: int) -> float:
    radii = torch.cat([_distances(block, centers).kthvalue(k + 1).values for block in centers.split(_BLOCK)])
    covered = [(_distances(block, centers) <= radii).any(dim=1) for block in points.split(_BLOCK)]
    return torch.cat(covered).double().mean().item()


def _distances(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    return torch.cdist(rows, columns, compute_mode="donot_use_mm_for_euclid_dist")


def psnr(mse: float, *, peak: float = 1.0) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error: 10 log10(peak^2 / mse); infinite for 0."""
    return math.inf if mse == 0 else 10 * math.log10(peak**2 / mse)
