"""What the metrics need to know of a set of images, gathered batch by batch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from deepcache.errors import DeepCacheError
from deepcache.metrics.extractors import Features
from deepcache.metrics.moments import RunningMoments

_ROOM = 4_096  # features that there is room for at once
SPLIT = 5_000  # images a part of the Inception score, as in the ADM suite


@dataclass
class Spread:
    """What the Inception score of a part needs: how many images, the sum of p, and that of p log p."""

    count: int
    total: NDArray[np.float64]
    entropy: float

    @property
    def score(self) -> float:
        """exp of the mean KL(p(y|x) || p(y))."""
        marginal = self.total / self.count
        return float(np.exp(self.entropy / self.count - _plogp(marginal)))


@dataclass(eq=False)
class Statistics:
    """Of images whose features come in batches.

    Moments and the Inception score's sums take the same memory however many images there are. Precision and recall
    need pooled features: `features` holds those of the images that are `chosen`, N x D x 4 bytes of them.

    Attributes:
        chosen: a flag for each image, as `drawn` gives; None for all.
        split: images a part of the Inception score; the last part may be smaller.
    """

    chosen: NDArray[np.bool_] | None = None
    split: int = SPLIT
    count: int = 0
    pooled: RunningMoments | None = None
    spatial: RunningMoments | None = None
    spreads: list[Spread] = field(default_factory=list)
    _num_kept: int = 0
    _kept: NDArray[np.float32] | None = None  # grown by doubling: parts kept one by one would tear the heap

    @classmethod
    def of(
        cls, batches: Iterable[Features], *, chosen: NDArray[np.bool_] | None = None, split: int = SPLIT
    ) -> Statistics:
        """Of all batches."""
        found = cls(chosen, split)
        for batch in batches:
            found.update(batch)
        return found

    def update(self, features: Features) -> None:
        """Take in one more batch."""
        self.pooled = _joined(self.pooled, features.pooled)
        self.spatial = _joined(self.spatial, features.spatial)
        self._spread(np.asarray(features.probabilities, np.float64))
        end = self.count + len(features.pooled)
        self._keep(features.pooled if self.chosen is None else features.pooled[self.chosen[self.count : end]])
        self.count = end

    @property
    def features(self) -> NDArray[np.float32]:
        """Pooled features (M, D) of the chosen images."""
        if self._kept is None:
            raise DeepCacheError("expected images, got none")
        return self._kept[: self._num_kept]

    @property
    def inception_score(self) -> float:
        """The mean over the parts."""
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
    """Which of `count` images have their features kept: so many, drawn with a fixed seed; None for all.

    The first would be of few classes where images stand in the order of these; every n-th, where classes go round.
    """
    if num_features is None or num_features >= count:
        return None
    return np.random.default_rng(0).permutation(count) < num_features


def _joined(running: RunningMoments | None, features: NDArray[np.float32]) -> RunningMoments:
    found = RunningMoments.of(features)
    return found if running is None else running.merge(found)


def _plogp(probabilities: NDArray[np.float64]) -> float:
    """The sum of p log p, 0 where p is."""
    return float((probabilities * np.log(np.where(probabilities > 0, probabilities, 1.0))).sum())
