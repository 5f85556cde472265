"""What must hold between the rows of a table: each row is sampled, or found sampled, and compared with the uncached."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest

from bench.harness import thresholds
from bench.harness.measure import Measure
from bench.harness.workload import Run, Workload
from deepcache.models.registry import MODELS


def is_judged(workload: Workload) -> bool:
    """Whether thresholds are for it: an embedded model, of as many steps and samples as its own protocol's.

    Whoever asks for fewer, as the smoke run does, gets records and no verdict.
    """
    if not workload.is_mini:
        return False
    asked, own = workload.protocol, MODELS[workload.model].protocol
    return asked.num_steps >= own.num_steps and asked.num_samples >= own.num_samples


def skip_unless_judged(workload: Workload) -> None:
    if not is_judged(workload):
        pytest.skip("needs an embedded model, of as many steps and samples as its protocol's")


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
