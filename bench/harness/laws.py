"""Several experiments share these thresholds; each stands with its reason, and `is_judged` tells whom they bind."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest
import torch

from bench.harness.measure import Measure
from bench.harness.workload import Run, Workload
from deepcache.models.registry import MODELS

MOST_THREADS = 8

# Samples of one garment and two seeds are 7 dB apart; at 20 dB an image is the same to the eye, and below 20 dB a seed
# counts as tipped (deepcache/metrics/fidelity.py). At N = 2 the paper calls the loss negligible.
SAME_IMAGE_DB = 20.0

# With the interval the feature grows older: fidelity must fall at every step of N = 2, 3, 5, 10, 20. The measure is
# paired (same seeds, same start noise). Where only such strides are compared, no seed's luck turns the order round:
# neighbours among all N may change places (N = 6 and 7 do in Figure 7, whose plans differ by one full step).
PSNR_FALLS_BY_AT_LEAST_DB = 0.0

# Prediction must beat reuse where features are smooth between full steps: a deep feature that is linear in the timestep
# over an interval loses its first-order error. 3 dB is a factor of two in the squared error, far below what a study on
# other models gave (8 dB and more of the median seed); at N = 10 the interval is no longer short against the feature's
# own change.
PREDICTION_INTERVALS = (2, 3, 5)
PREDICTION_GAINS_DB = 3.0

# Real images score 92 with their own caption and 10 with another image's (mini-clip's card). The model must draw three
# of four images as asked; a wrong garment in the right colours still scores some 40.
CLIP_SCORE_OF_MINI_SD = 75.0

# The paper loses 0.07 of 30.30 points at N = 5 (Table 14). mini-clip's score is steeper: an image whose garment it
# takes for another loses some 40 points, so one such image among 40 costs a point, and caching must not cost one.
CLIP_SCORE_LOST = 1.0


class Judge:
    """Says whether the thresholds of a test apply, and remembers whether they ever did."""

    def __init__(self) -> None:
        self.has_judged = False

    def __call__(self, workload: Workload, *, when: bool = True) -> bool:
        """Return whether a row of this workload is judged; `when` tells whether the row has a threshold at all."""
        judged = when and is_judged(workload)
        self.has_judged |= judged
        return judged


def is_judged(workload: Workload) -> bool:
    """Return whether the thresholds apply to a workload.

    They apply to an embedded model with at least the steps and samples of its protocol.

    A smaller run, such as the smoke run, leaves records and no verdict.
    """
    if not workload.is_mini:
        return False
    asked, own = workload.protocol, MODELS[workload.model].protocol
    return asked.num_steps >= own.num_steps and asked.num_samples >= own.num_samples


def skip_unless_judged(workload: Workload) -> None:
    """Skip a test that has nothing but thresholds where they do not apply."""
    if not is_judged(workload):
        pytest.skip("needs an embedded model, with as many steps and samples as its protocol has")


def macs_rule_time(workload: Workload) -> bool:
    """Return whether a speedup can be held against MACs, as arithmetic rules the time of an embedded model on a CPU.

    On a GPU, kernel launches and memory rule the time, each device in its own way; on a CPU with many threads too.
    """
    return workload.is_mini and workload.device_name == "cpu" and torch.get_num_threads() <= MOST_THREADS


def speedup_in_pixels(macs_ratio: float) -> float:
    """Return the least speedup in pixel space of a plan that saves MACs by the factor `macs_ratio`.

    In pixel space the outermost stages are bound by memory more than by arithmetic: a shallow step of mini-ddpm runs at
    32 x 32 and 16 x 16 pixels, where a MAC takes longer than at 4 x 4. So 0.75 of the ratio is asked. Where that is
    less than one (inner branches save little), the cached run may be slower by a tenth, the noise of a busy machine.
    """
    return max(0.75 * macs_ratio, 0.9)


def medians_db(workload: Workload, uncached: Run, runs: Iterable[Run]) -> list[float]:
    """Return for each run the PSNR of the median seed to the uncached samples, in dB."""
    seeds = workload.seeds()
    base = workload.samples(uncached, seeds, "uncached")
    return [Measure.change(workload.samples(run, seeds), base)["psnr_median_db"] for run in runs]


def assert_falls(values: Iterable[float]) -> None:
    """Assert that PSNR falls from row to row; the rows go from the newest features to the oldest."""
    for nearer, farther in pairwise(values):
        assert nearer - farther > PSNR_FALLS_BY_AT_LEAST_DB


def assert_clip_score_is_kept(clip_score: float, uncached: list[float]) -> None:
    """Assert that a cached run scores like the uncached samples, of which `uncached` has the scores."""
    assert clip_score >= sum(uncached) / len(uncached) - CLIP_SCORE_LOST
