"""Idle plans of the Pareto bench keep to their share of the steps, and every curve has a style (exact laws)."""

from __future__ import annotations

import pytest

from bench.pareto import points
from bench.pareto.aims import FEWER, PREDICTED, REUSE


@pytest.mark.parametrize("calls", [20, 21, 25, 26, 50, 51])  # PLMS has a call more than steps
def test_as_many_steps_are_full_as_a_share_allows(calls: int) -> None:
    for share in points.SHARES:
        (count,) = points._counts(calls, [share])
        assert count <= share * calls < count + 1


def test_few_steps_leave_a_first_and_a_last_full_step() -> None:
    assert points._counts(4, points.SHARES) == [2]
    assert points._counts(2, points.SHARES) == []


def test_every_curve_is_drawn() -> None:
    assert points.STYLES.keys() == {FEWER, REUSE, *PREDICTED}
