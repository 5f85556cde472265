"""The statistics of a set of images, gathered batch by batch, from which quality is measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from deepcache.errors import DeepCacheError
from deepcache.metrics.distances import RunningMoments
from deepcache.metrics.extractors import Features

SPLIT = 5_000  # images in a part of the Inception score, as in the ADM suite
_ROOM = 4_096  # features for which memory is reserved at first
T = TypeVar("T")


@dataclass
class Spread:
    """The sums that the Inception score of a part needs, over `count` images: of p (K,), and of p log p."""

    count: int
    total: NDArray[np.float64]
    entropy: float

    @property
    def score(self) -> float:
        """The exponential of the mean KL(p(y|x) || p(y))."""
        marginal = self.total / self.count
        return float(np.exp(self.entropy / self.count - _plogp(marginal)))


@dataclass(eq=False)
class Statistics:
    """The statistics of images whose features come in batches.

    The moments and the Inception score's sums take the same memory however many images there are. Precision and recall
    need pooled features: those of the `chosen` images are kept, N x D x 4 bytes of N images.

    Attributes:
        chosen: a flag for each image, as `drawn` returns them; None to keep the features of all images.
        split: images in a part of the Inception score; the last part may be smaller.
    """

    chosen: NDArray[np.bool_] | None = None
    split: int = SPLIT
    count: int = 0
    spreads: list[Spread] = field(default_factory=list)
    _pooled: RunningMoments | None = None
    _spatial: RunningMoments | None = None
    _num_kept: int = 0
    _kept: NDArray[np.float32] | None = None  # grows by doubling: an array a batch would fragment the heap

    @classmethod
    def of(
        cls, batches: Iterable[Features], *, chosen: NDArray[np.bool_] | None = None, split: int = SPLIT
    ) -> Statistics:
        """The statistics of all batches."""
        found = cls(chosen, split)
        for batch in batches:
            found.update(batch)
        return found

    def update(self, features: Features) -> None:
        """Take in one more batch."""
        self._pooled = _joined(self._pooled, features.pooled)
        self._spatial = _joined(self._spatial, features.spatial)
        self._spread(np.asarray(features.probabilities, np.float64))
        end = self.count + len(features.pooled)
        self._keep(features.pooled if self.chosen is None else features.pooled[self.chosen[self.count : end]])
        self.count = end

    @property
    def pooled(self) -> RunningMoments:
        """The moments of the pooled features of all images."""
        return _there(self._pooled)

    @property
    def spatial(self) -> RunningMoments:
        """The moments of the spatial features of all images."""
        return _there(self._spatial)

    @property
    def features(self) -> NDArray[np.float32]:
        """The pooled features (M, D) of the chosen images."""
        return _there(self._kept)[: self._num_kept]

    @property
    def inception_score(self) -> float:
        """The mean score of the parts."""
        return float(np.mean([spread.score for spread in self.spreads]))

    def _keep(self, features: NDArray[np.float32]) -> None:
        end = self._num_kept + len(features)
        if self._kept is None or end > len(self._kept):
            grown = np.empty((max(end, 2 * self._num_kept, _ROOM), features.shape[1]), np.float32)
            if self._kept is not None:
                grown[: self._num_kept] = self._kept[: self._num_kept]
            self._kept = grown
        self._kept[self._num_kept : end] = features
        self._num_kept = end

    def _spread(self, probabilities: NDArray[np.float64]) -> None:
        while len(probabilities):
            if not self.spreads or self.spreads[-1].count == self.split:
                self.spreads.append(Spread(0, np.zeros(probabilities.shape[1]), 0.0))
            spread = self.spreads[-1]
            part = probabilities[: self.split - spread.count]
            spread.count += len(part)
            spread.total += part.sum(axis=0)
            spread.entropy += _plogp(part)
            probabilities = probabilities[len(part) :]


def drawn(count: int, num_features: int | None) -> NDArray[np.bool_] | None:
    """Draw, with a fixed random seed, the images whose features are kept.

    Neither the first images nor every n-th image would do: the first are of few classes where images are sorted by
    class, and every n-th image is of few classes where the classes take turns.

    Args:
        count: how many images there are.
        num_features: how many of them are drawn; None for all.

    Returns:
        A flag for each image, or None where all are kept.
    """
    if num_features is None or num_features >= count:
        return None
    return np.random.default_rng(0).permutation(count) < num_features


def _there(gathered: T | None) -> T:
    if gathered is None:
        raise DeepCacheError("expected images, got none")
    return gathered


def _joined(running: RunningMoments | None, features: NDArray[np.float32]) -> RunningMoments:
    found = RunningMoments.of(features)
    return found if running is None else running.merge(found)


def _plogp(probabilities: NDArray[np.float64]) -> float:
    """The sum of p log p, which is 0 at p = 0."""
    return float((probabilities * np.log(np.where(probabilities > 0, probabilities, 1.0))).sum())
