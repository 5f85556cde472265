"""Distances between sets of features, as pure functions of arrays."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray

from deepcache.errors import DeepCacheError
from deepcache.metrics.moments import Moments

Array = NDArray[np.floating]
_CELLS = 1_000_000  # distances held at once, 8 MB
_ROWS = 128  # at least, so that columns are not converted again too often: 51 MB of 50,000
_COLUMNS = 2_000  # features that are float64 at once


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


@dataclass(frozen=True, eq=False)
class Manifold:
    """The union of balls around points (N, D), each as wide as the distance to its k-th nearest neighbour.

    Precision is the share of samples within the real images' manifold, recall that of real images within the samples'.

    References:
        Improved Precision and Recall Metric for Assessing Generative Models (Kynkäänniemi et al., 2019),
        https://arxiv.org/abs/1904.06991
    """

    centers: torch.Tensor
    squared_radii: torch.Tensor

    @classmethod
    def of(cls, features: Array, *, k: int = 3, device: str | torch.device = "cpu") -> Manifold:
        """The manifold of features (N, D), N > k; k is 3 in the paper.

        Takes N D numbers and a block of distances, whatever N; worked out in float64 on the device.
        """
        if len(features) <= k:
            raise DeepCacheError(f"expected more than k = {k} features a side, got {len(features)}")
        centers = torch.as_tensor(np.asarray(features)).to(device)
        blocks = _squared_distances(centers, centers)
        nearest = [block.kthvalue(k + 1).values.tolist() for block in blocks]  # tensors kept would tear the heap
        return cls(centers, torch.tensor(list(chain(*nearest)), dtype=torch.float64, device=device))

    def share_within(self, features: Array) -> float:
        """Share of the features (N, D) that lie within a ball, 0..1."""
        rows = torch.as_tensor(np.asarray(features)).to(self.centers.device)
        within = [(block <= self.squared_radii).any(dim=1) for block in _squared_distances(rows, self.centers)]
        return torch.cat(within).double().mean().item()


def _squared_distances(rows: torch.Tensor, columns: torch.Tensor) -> Iterator[torch.Tensor]:
    """|a - b|^2 = |a|^2 + |b|^2 - 2 a b, in float64, of some rows and all columns at a time, until the next ones.

    Both are moved to the columns' mean first: what cancels is then no larger than the distances.
    """
    mean = columns.mean(dim=0, dtype=torch.float64)
    size = min(len(rows), max(_ROWS, _CELLS // len(columns)))
    block = torch.empty(size, len(columns), dtype=torch.float64, device=columns.device)  # the same for all rows
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
    """Peak signal-to-noise ratio in dB of a mean squared error: 10 log10(peak^2 / mse); infinite for 0."""
    return math.inf if mse == 0 else 10 * math.log10(peak**2 / mse)
