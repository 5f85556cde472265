"""Distances between sets of features, as pure functions of arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass

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


@dataclass(frozen=True, eq=False)
class Manifold:
    """The union of balls around points (N, D), each as wide as the distance to its k-th nearest neighbour.

    Precision is the share of samples within the real images' manifold, recall that of real images within the samples'.

    References:
        Improved Precision and Recall Metric for Assessing Generative Models (Kynkäänniemi et al., 2019),
        https://arxiv.org/abs/1904.06991
    """

    centers: torch.Tensor
    radii: torch.Tensor

    @classmethod
    def of(cls, features: Array, *, k: int = 3) -> Manifold:
        """The manifold of features (N, D), N > k; k is 3 in the paper."""
        if len(features) <= k:
            raise DeepCacheError(f"expected more than k = {k} features a side, got {len(features)}")
        centers = _exact(features)
        radii = [_distances(block, centers).kthvalue(k + 1).values for block in centers.split(_BLOCK)]
        return cls(centers, torch.cat(radii))

    def share_within(self, features: Array) -> float:
        """Share of the features (N, D) that lie within a ball, 0..1."""
        within = [
            (_distances(block, self.centers) <= self.radii).any(dim=1) for block in _exact(features).split(_BLOCK)
        ]
        return torch.cat(within).double().mean().item()


def _exact(features: Array) -> torch.Tensor:
    return torch.as_tensor(np.asarray(features, np.float64))


def _distances(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    return torch.cdist(rows, columns, compute_mode="donot_use_mm_for_euclid_dist")


def psnr(mse: float, *, peak: float = 1.0) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error: 10 log10(peak^2 / mse); infinite for 0."""
    return math.inf if mse == 0 else 10 * math.log10(peak**2 / mse)
