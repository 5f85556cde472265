"""The registry tells the truth of its metrics: names, ranges and directions (exact laws on made-up features)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from deepcache.metrics.fidelity import drift, drift_of_errors, quality
from deepcache.metrics.reference import Reference, from_statistics
from deepcache.metrics.registry import METRICS, Inputs, Metric
from deepcache.metrics.statistics import Features, Statistics

RNG = np.random.default_rng(0)


def features(*, moved: float = 0.0, sharp: float = 10.0) -> Features:
    classes = torch.from_numpy(np.random.default_rng(1).normal(size=(60, 5)) * sharp).softmax(dim=1).numpy()
    values = np.random.default_rng(2).normal(size=(60, 4)) + moved
    return Features(values, values, classes)


REAL = from_statistics(Statistics.of([features()]))
BETTER_AND_WORSE: dict[Inputs, tuple[Callable[..., dict[str, float]], tuple[object, ...], tuple[object, ...]]] = {
    "reference": (
        quality,
        (Statistics.of([features(moved=0.1)]), REAL),
        (Statistics.of([features(moved=3, sharp=0.1)]), REAL),
    ),
    "features": (
        lambda cached, uncached: {"fid_drift": drift(cached, uncached, np.zeros(1))["fid_drift"]},
        (features(moved=0.1), features()),
        (features(moved=3), features()),
    ),
    "errors": (drift_of_errors, (np.array([1e-5, 2e-5, 3e-5]),), (np.array([1e-4, 2e-3, 0.2]),)),
}


@pytest.mark.parametrize("inputs", BETTER_AND_WORSE)
def test_what_is_better_is_so_by_every_metric(inputs):
    measured, *given = BETTER_AND_WORSE[inputs]
    better, worse = (measured(*each) for each in given)
    named = [key for key, metric in METRICS.items() if metric.inputs == inputs]
    assert named == [*better] == [*worse]
    for key in named:
        assert type(better[key]) is float, key
        assert (better[key] > worse[key]) == METRICS[key].is_higher_better, key
        assert all(METRICS[key].low <= found[key] <= METRICS[key].high for found in (better, worse)), key


def test_what_cannot_be_measured_is_left_out():
    assert quality(Statistics.of([features()]), Reference()).keys() == {"is"}
    assert "psnr_untipped_db" not in drift_of_errors(np.array([1.0]))


def test_a_title_has_the_unit_and_a_direction_the_range():
    plain = Metric("a", 1, "errors", is_higher_better=True)
    decibels = Metric("a", 1, "errors", is_higher_better=False, unit="dB", high=80.0)
    percent = Metric("a", 1, "errors", is_higher_better=None, unit="%", high=100.0)
    assert [metric.title for metric in (plain, decibels, percent)] == ["a", "a (dB)", "a (%)"]
    assert plain.direction == "higher is better"
    assert decibels.direction == "0..80, lower is better"
    assert percent.direction == "neither direction is better"
