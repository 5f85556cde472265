"""The registry tells the truth of its metrics: functions, ranges and directions (exact laws on made-up features)."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
import torch

from deepcache.metrics.extractors import Features
from deepcache.metrics.fidelity import Varied
from deepcache.metrics.reference import Reference, from_statistics
from deepcache.metrics.registry import METRICS, Inputs, Metric, measured
from deepcache.metrics.statistics import Statistics

RNG = np.random.default_rng(0)


def features(*, moved: float = 0.0, sharp: float = 10.0) -> Features:
    classes = torch.from_numpy(np.random.default_rng(1).normal(size=(60, 5)) * sharp).softmax(dim=1).numpy()
    values = np.random.default_rng(2).normal(size=(60, 4)) + moved
    return Features(values, values, classes)


REAL = from_statistics(Statistics.of([features()]))
BETTER_AND_WORSE: dict[Inputs, list[tuple[object, ...]]] = {
    "reference": [
        (Statistics.of([features(moved=0.1)]), REAL),
        (Statistics.of([features(moved=3, sharp=0.1)]), REAL),
    ],
    "features": [(features(moved=0.1), features()), (features(moved=3), features())],
    "errors": [(np.array([1e-5, 2e-5, 3e-5]),), (np.array([1e-4, 2e-3, 0.2]),)],
}


@pytest.mark.parametrize("inputs", BETTER_AND_WORSE)
def test_what_is_better_is_so_by_every_metric(inputs):
    better, worse = (measured(inputs, *given) for given in BETTER_AND_WORSE[inputs])
    named = [key for key, metric in METRICS.items() if metric.inputs == inputs]
    assert named == [*better] == [*worse]
    for key in named:
        assert (better[key] > worse[key]) == METRICS[key].is_higher_better, key
        assert all(METRICS[key].low <= found[key] <= METRICS[key].high for found in (better, worse)), key


def test_every_metric_names_a_function_of_its_module():
    for key, metric in METRICS.items():
        module, function = metric.function.split(".")
        assert callable(getattr(import_module(f"deepcache.metrics.{module}"), function)), key


def test_metrics_of_one_prompt_and_of_values_are_plain_numbers_in_their_range():
    varied = Varied(torch.rand(4, 3, 2, 2), torch.rand(6), np.array([50.0, 60, 70, 80]))
    for inputs, given in (("one prompt", varied), ("values", np.array([1.0, 2.0, 6.0]))):
        found = measured(inputs, given)
        assert found.keys() == {key for key, metric in METRICS.items() if metric.inputs == inputs}
        assert all(
            type(value) is float and METRICS[key].low <= value <= METRICS[key].high for key, value in found.items()
        )


def test_what_cannot_be_measured_is_left_out():
    assert measured("reference", Statistics.of([features()]), Reference()).keys() == {"is"}
    assert "psnr_untipped_db" not in measured("errors", np.array([1.0]))


def test_a_title_has_the_unit_and_a_direction_the_range():
    plain = Metric("a", 1, "errors", "f.a", is_higher_better=True)
    decibels = Metric("a", 1, "errors", "f.a", is_higher_better=False, unit="dB", high=80.0)
    percent = Metric("a", 1, "errors", "f.a", is_higher_better=None, unit="%", high=100.0)
    assert [metric.title for metric in (plain, decibels, percent)] == ["a", "a (dB)", "a (%)"]
    assert plain.direction == "higher is better"
    assert decibels.direction == "0..80, lower is better"
    assert percent.direction == "neither direction is better"
