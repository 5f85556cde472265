"""What a Pareto panel is held to: the chosen prediction against reuse and against fewer steps, at equal cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from pareto import PREDICTED, Panel, Point

from deepcache.metrics.bootstrap import Statistic, bootstrap
from deepcache.metrics.fidelity import PSNR_AT_MOST_DB

COSTS = np.linspace(0.25, 0.7, 46)  # shares of the uncached MACs


class Difference(NamedTuple):
    """Of two points over the same seeds, in dB, with the ends of its bootstrap interval."""

    value: float
    low: float
    high: float


def reuse(found: Panel, interval: int) -> Point | None:
    """The point of the paper's plan."""
    return next((point for point in found.on("order 0") if point.name == f"order 0, N={interval}"), None)


def chosen(points: Sequence[Point], share: float, metric: str = "psnr_db") -> Point | None:
    """Of those that cost no more than a share, the one that is nearest on the choosing seeds; None where none is."""
    within = [point for point in points if point.share <= share * (1 + 1e-9)]
    return max(within, key=lambda point: point.choosing[metric], default=None)


def prediction(found: Panel, interval: int, of_macs: float = 1.0) -> Point | None:
    """The prediction that is chosen at the cost of reuse at N = `interval`, or at a share of that."""
    base = reuse(found, interval)
    return None if base is None else chosen(found.on(*PREDICTED), of_macs * base.share)


def gain(found: Panel, interval: int, statistic: Statistic, of_macs: float = 1.0) -> Difference | None:
    """The chosen prediction's PSNR to the uncached images over reuse's at N = `interval`.

    None where there are no such plans, or where reuse leaves nothing to gain.
    """
    base, best = reuse(found, interval), prediction(found, interval, of_macs)
    if base is None or best is None:
        return None
    pairs = np.array([best.per_seed["psnr_db"], base.per_seed["psnr_db"]]).T  # (B, 2)
    if statistic(pairs[:, 1], axis=0) >= PSNR_AT_MOST_DB:
        return None

    def difference(each: np.ndarray, axis: int) -> np.ndarray:
        both = statistic(each, axis=axis)
        return np.asarray(both[..., 0] - both[..., 1])

    return Difference(float(difference(pairs, axis=0)), *bootstrap(difference, pairs))


def least_lead(found: Panel, metric: str) -> float | None:
    """The chosen prediction's median over that of the chosen fewer steps, in dB, at the cost where it is least.

    At a cost that fewer steps reach and no prediction does, there is none: None.
    """
    leads = []
    for share in COSTS:
        fewer = chosen(found.on("fewer steps"), share, metric)
        best = chosen(found.on(*PREDICTED), share, metric)
        if fewer is not None:
            if best is None:
                return None
            leads.append(np.median(best.per_seed[metric]) - np.median(fewer.per_seed[metric]))
    return float(min(leads)) if leads else None
