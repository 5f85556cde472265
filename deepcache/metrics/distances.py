"""Distances between sets of features, as pure functions of arrays."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch

from deepcache.errors import DeepCacheError
from deepcache.metrics.statistics import Array, Moments

_CELLS = 1_000_000  # distances held at once, 8 MB
_ROWS = 128  # rows of a block, at least, so that columns are not converted again too often: 51 MB of 50,000
_COLUMNS = 2_000  # features that are float64 at once


def frechet_distance(first: Moments, second: Moments) -> float:
    """The Fréchet distance between two Gaussians, 0..inf; FID on pooled features, sFID on spatial features.

        |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))

    The trace of the root is the sum of the roots of the eigenvalues of S1^(1/2) S2 S1^(1/2), which are real and not
    negative (GANs Trained by a Two Time-Scale Update Rule, Heusel et al., 2017, https://arxiv.org/abs/1706.08500).
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


@dataclass(frozen=True, eq=False)
class Manifold:
    """The union of balls around points (N, D); a ball reaches from its point to the point's k-th nearest neighbour.

    Precision is the share of samples within the manifold of the real images, recall is the share of real images within
    the manifold of the samples (Improved Precision and Recall Metric for Assessing Generative Models, Kynkäänniemi et
    al., 2019, https://arxiv.org/abs/1904.06991).
    """

    centers: torch.Tensor
    squared_radii: torch.Tensor

    @classmethod
    def of(cls, features: Array, *, k: int = 3, device: str | torch.device = "cpu") -> Manifold:
        """The manifold of features (N, D), N > k.

        Memory holds the features and a block of float64 distances on the device, whatever N. The paper has k = 3.
        """
        if len(features) <= k:
            raise DeepCacheError(f"expected more than k = {k} features a side, got {len(features)}")
        centers = torch.as_tensor(features).to(device)
        blocks = _squared_distances(centers, centers)
        nearest = [block.kthvalue(k + 1).values.tolist() for block in blocks]  # small tensors would fragment the heap
        return cls(centers, torch.tensor(list(chain(*nearest)), dtype=torch.float64, device=device))

    def share_within(self, features: Array) -> float:
        """The share of features (N, D) that lie within a ball, 0..1."""
        rows = torch.as_tensor(features).to(self.centers.device)
        within = [(block <= self.squared_radii).any(dim=1) for block in _squared_distances(rows, self.centers)]
        return torch.cat(within).double().mean().item()


def _squared_distances(rows: torch.Tensor, columns: torch.Tensor) -> Iterator[torch.Tensor]:
    """Give |a - b|^2 = |a|^2 + |b|^2 - 2 a b in float64, of some rows and all columns at a time.

    A block is overwritten by the next one. Both sides are moved to the columns' mean first, so that the terms that
    cancel are no larger than the distances.
    """
    mean = columns.mean(dim=0, dtype=torch.float64)
    size = min(len(rows), max(_ROWS, _CELLS // len(columns)))
    block = torch.empty(size, len(columns), dtype=torch.float64, device=columns.device)
    for part in rows.split(size):
        centered = part.double() - mean
        squares = centered.square().sum(dim=1)[:, None]
        for start in range(0, len(columns), _COLUMNS):
            others = columns[start : start + _COLUMNS].double() - mean
            sums = squares + others.square().sum(dim=1)
            found = torch.addmm(sums, centered, others.T, alpha=-2).clamp_(min=0)
            block[: len(part), start : start + _COLUMNS] = found
        yield block[: len(part)]


def psnr(mse: float, *, peak: float = 1.0) -> float:
    """The peak signal-to-noise ratio in dB of a mean squared error: 10 log10(peak^2 / mse); infinite for 0."""
    return math.inf if mse == 0 else 10 * math.log10(peak**2 / mse)
