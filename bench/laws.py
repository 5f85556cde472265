"""What must hold between the rows of a table: each row is sampled, or found sampled, and compared with the uncached."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest
import thresholds
from measure import Measure
from workload import Run, Workload


def is_judged(workload: Workload) -> bool:
    """Whether thresholds are for it: an embedded model, of which enough steps and seeds are sampled."""
    steps, seeds = workload.protocol.num_steps, workload.protocol.num_samples
    enough = steps >= thresholds.ENOUGH_STEPS and seeds >= thresholds.ENOUGH_SEEDS_FOR_A_MEDIAN
    return workload.is_mini and enough


def skip_unless_judged(workload: Workload) -> None:
    if not is_judged(workload):
        pytest.skip("needs an embedded model with enough steps and samples (bench/thresholds.py)")


def medians_db(workload: Workload, uncached: Run, runs: Iterable[Run]) -> list[float]:
    """Of each run, PSNR of the median seed to the uncached samples."""
    seeds = workload.seeds()
    base = workload.samples(uncached, seeds, "uncached")
    return [Measure.change(workload.samples(run, seeds), base)["psnr_median_db"] for run in runs]


def assert_falls(values: Iterable[float]) -> None:
    """PSNR of rows from the newest features to the oldest."""
    for nearer, farther in pairwise(values):
        assert nearer - farther > thresholds.PSNR_FALLS_BY_AT_LEAST_DB


def assert_clip_score_is_kept(clip_score: float, uncached: list[float]) -> None:
    """Of a cached run of a few steps' interval, against the scores of the uncached samples."""
    assert clip_score >= sum(uncached) / len(uncached) - thresholds.CLIP_SCORE_LOST
