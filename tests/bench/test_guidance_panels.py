"""The guidance bench: its chance is that of a coin, its gains are differences of rows, its selection is of the grid."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest

from bench import test_guidance as bench
from bench.harness.workload import Workload
from deepcache import models
from deepcache.metrics.extractors import MiniExtractor
from deepcache.models.registry import Protocol
from deepcache.plan import DEFAULT_ORDER, IDLE

PROTOCOL = Protocol("ddim", 4, 3, 0, 1.5, batch_size=3, timed_batch_size=1)
PANEL = bench.Panel("class_conditional", 5.0, "ddim", 50, 2)


@pytest.mark.parametrize(("number", "tosses"), [(0, 0), (0, 3), (1, 1), (5, 5), (6, 7), (4, 9)])
def test_chance_is_that_of_a_coin(number: int, tosses: int) -> None:
    """Oracle: scipy's exact binomial test, which has no answer without a toss."""
    expected = binomtest(number, tosses, alternative="greater").pvalue if tosses else 1.0
    assert bench._by_chance(number, tosses) == pytest.approx(expected, rel=1e-12)


def test_the_selection_is_of_the_grid_and_the_grid_has_each_panel_once() -> None:
    assert set(bench.SELECTED) < set(bench.PANELS)
    assert len(set(bench.PANELS)) == len(bench.PANELS) == 2 * 3 * 4 * 4 * 3


def test_a_gain_is_the_difference_between_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors that are made up: the default is nearer by 10 dB in every seed, but for one seed that it tips."""
    reuse = np.array([1e-4, 1e-3, 1e-3, 1e-3, 1e-5])
    own = {DEFAULT_ORDER: np.array([1e-5, 1e-4, 1e-4, 1e-4, 0.1]), 0: reuse}
    monkeypatch.setattr(bench, "_measured", lambda _model, run, _uncached: (own[run.cache_plan.order], {}))
    model = Workload.of("mini-ldm", models.load("mini-ldm"), PROTOCOL, extractor=MiniExtractor.load())
    for branch in (0, IDLE):
        found = bench._gain(model, PANEL, branch)
        assert found.median == pytest.approx(40 - 30)
        assert found.low <= found.median <= found.high
        assert (found.num_tipped, found.num_tipped_by_reuse, found.probability) == (1, 0, 0.5)
        assert found.decile == pytest.approx((10 + 0.4 * 30) - 30)


def test_a_panel_has_no_more_steps_than_were_asked_for() -> None:
    model = Workload.of("mini-ldm", models.load("mini-ldm"), PROTOCOL, extractor=MiniExtractor.load())
    assert bench._uncached(model, PANEL).num_steps == 4
    longer = replace(model, protocol=replace(PROTOCOL, num_steps=100))
    assert bench._uncached(longer, PANEL).num_steps == 50
    assert bench._seeds(longer) == range(bench.FIRST_SEED, bench.FIRST_SEED + 3)
