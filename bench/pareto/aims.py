"""An aim of a Pareto panel is a gain of the chosen prediction over reuse or over fewer steps, at equal cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from deepcache.metrics.fidelity import PSNR_AT_MOST_DB
from deepcache.metrics.statistics import Statistic, bootstrap
from deepcache.results.layout import Scalar

FEWER, REUSE = "fewer steps", "order 0"
PREDICTED = (
    "order 1",
    "order 2",
    "order auto",
    "fewer steps, order 1",
    "idle",
    "idle over fewer steps",
    "idle, searched",
    "mixed",
    "tuned",
)
TARGETS = {0.15: 15, 0.25: 22, 0.33: 24, 0.4: 26, 0.5: 27, 0.6: 27, 0.7: 27}  # at a share, panels that are to lead
COSTS = np.linspace(0.25, 0.7, 46)  # the shares of the uncached MACs at which leads are compared
ROUNDING = 1e-9
_WHOLE_STEP = 0.01  # the share of the uncached MACs by which fewer steps may cost more, since their number is whole


@dataclass(frozen=True)
class Point:
    """A run on a curve: its `share` of the uncached MACs, with all MACs counted, and its metrics.

    `key` tells the point from the others of its panel, and `name` is its printed name. `choosing` has the means of
    `per_seed` over the choosing seeds, which say more than medians of so few.
    """

    key: dict[str, Scalar]
    name: str
    share: float
    metrics: dict[str, Any]
    per_seed: dict[str, list[float]]
    choosing: dict[str, float]

    @property
    def curve(self) -> str:
        return str(self.key["curve"])


class Difference(NamedTuple):
    """The difference between two points over the same seeds, in dB, with the ends of its bootstrap interval."""

    value: float
    low: float
    high: float


def psnr_of_mean(each: np.ndarray, axis: int) -> np.ndarray:
    """Return the PSNR in dB of the mean squared error over an axis, from the PSNR in dB of each seed."""
    return np.asarray(-10 * np.log10((10 ** (-each / 10)).mean(axis=axis)))


def reuse(points: Sequence[Point], interval: int) -> Point | None:
    """Return the point of the paper's plan, reuse at an interval, or None."""
    return next((point for point in points if point.key == {"curve": REUSE, "interval": interval}), None)


def chosen(points: Sequence[Point], curves: Sequence[str], share: float, metric: str = "psnr_db") -> Point | None:
    """Return the point on some curves that the choosing seeds prefer within a share of the MACs, or None."""
    most = share + (_WHOLE_STEP if tuple(curves) == (FEWER,) else ROUNDING)
    within = [point for point in points if point.curve in curves and point.share <= most]
    return max(within, key=lambda point: point.choosing[metric], default=None)


def prediction(points: Sequence[Point], interval: int, of_macs: float = 1.0) -> Point | None:
    """Return the prediction that is chosen at `of_macs` times the cost of reuse at N = `interval`, or None."""
    base = reuse(points, interval)
    return None if base is None else chosen(points, PREDICTED, of_macs * base.share)


def gain(points: Sequence[Point], interval: int, statistic: Statistic, of_macs: float = 1.0) -> Difference | None:
    """Return what the chosen prediction gains over reuse at N = `interval`, in PSNR to the uncached images.

    Args:
        points: the points of a panel.
        interval: the interval of reuse.
        statistic: the figure over seeds that is compared.
        of_macs: the share of the MACs of reuse that the prediction may cost.

    Returns:
        The gain in dB, or None where there are no such plans or reuse leaves nothing to gain.
    """
    base, best = reuse(points, interval), prediction(points, interval, of_macs)
    if base is None or best is None:
        return None
    pairs = np.array([best.per_seed["psnr_db"], base.per_seed["psnr_db"]]).T  # (B, 2)
    if statistic(pairs[:, 1], axis=0) >= PSNR_AT_MOST_DB:
        return None

    def difference(each: np.ndarray, axis: int) -> np.ndarray:
        both = statistic(each, axis=axis)
        return np.asarray(both[..., 0] - both[..., 1])

    return Difference(float(difference(pairs, axis=0)), *bootstrap(difference, pairs))


def lead(points: Sequence[Point], share: float, metric: str = "psnr_db") -> float | None:
    """Return by how many dB the median seed of the chosen prediction leads that of the chosen fewer steps at a cost.

    Returns:
        The lead; infinity where no fewer steps cost so little, minus infinity where no prediction does, None where
        neither does.
    """
    best, fewer = (chosen(points, curves, share, metric) for curves in (PREDICTED, (FEWER,)))
    if best is None or fewer is None:
        return None if best is fewer else float("inf" if best else "-inf")
    return float(np.median(best.per_seed[metric]) - np.median(fewer.per_seed[metric]))


def num_nearer(panels: Sequence[Sequence[Point]], share: float) -> int:
    """Count the panels whose chosen prediction is nearer than the chosen fewer steps at a cost."""
    return sum((lead(points, share) or 0) > 0 for points in panels)


def least_lead(points: Sequence[Point], metric: str) -> float | None:
    """Return the smallest lead over all costs, or None where fewer steps reach a cost that no prediction reaches."""
    leads = [found for share in COSTS if (found := lead(points, share, metric)) is not None]
    return min(leads) if leads and np.isfinite(min(leads)) else None
