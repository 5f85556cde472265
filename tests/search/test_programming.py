"""Dynamic programming finds what trying everything finds (an exact law), on errors without any structure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepcache.errors import DeepCacheError
from deepcache.search.programming import Error, best, stretches
from deepcache.search.recorder import Responses, lagrange

NUM_STEPS = 8


def responses(seed: int) -> Responses:
    rng = np.random.default_rng(seed)
    vectors = tuple(rng.normal(size=(step, 2, 5)).astype(np.float32) for step in range(NUM_STEPS))
    return Responses(vectors, np.linspace(900, 0, NUM_STEPS), branch=0)


def error_of(found: Responses) -> Error:
    """Squared: of both samples, with gain 1."""
    products = found.products(np.ones((NUM_STEPS, 2)))
    return lambda nodes, step: found.squared_error(nodes, step, products)


def cost(found: Responses, full_steps: Sequence[int], order: int) -> float:
    error, total = error_of(found), 0.0
    for step in set(range(NUM_STEPS)) - set(full_steps):
        before = [full for full in full_steps if full < step][::-1]
        total += error(tuple(before[: order + 1]), step)
    return total


@given(seed=st.integers(0, 10_000), order=st.integers(0, 2), num_full=st.integers(1, NUM_STEPS))
def test_the_best_full_steps_are_those_of_trying_all(seed, order, num_full):
    found = responses(seed)
    full_steps, total = best(stretches(error_of(found), NUM_STEPS, order, longest=NUM_STEPS), num_full)
    tried = {(0, *rest): cost(found, (0, *rest), order) for rest in combinations(range(1, NUM_STEPS), num_full - 1)}
    assert total == pytest.approx(min(tried.values()), rel=1e-9, abs=1e-12)
    assert tried[full_steps] == pytest.approx(total, rel=1e-9, abs=1e-12)


def test_a_greedy_choice_would_be_worse():
    """A greedy choice loses on some errors; else the law above would prove nothing."""
    leads = []
    for seed in range(10):
        found = responses(seed)
        steps: tuple[int, ...] = (0,)
        while len(steps) < 4:
            more = [tuple(sorted((*steps, step))) for step in range(1, NUM_STEPS) if step not in steps]
            steps = min(more, key=lambda full_steps: cost(found, full_steps, 1))
        least = best(stretches(error_of(found), NUM_STEPS, 1, longest=NUM_STEPS), 4)[1]
        leads.append(cost(found, steps, 1) / least)
    assert min(leads) >= 1 - 1e-9
    assert max(leads) > 1.01


def test_an_error_is_the_weighted_sum_of_responses():
    found, nodes = responses(2), (4, 1)
    weights = lagrange(found.timesteps[[4, 1]], found.timesteps[6])
    expected = weights[0] * found.vectors[6][4] + weights[1] * found.vectors[6][1]
    np.testing.assert_allclose(found.error(nodes, 6), expected, rtol=1e-5)
    squared = (expected.astype(np.float64) ** 2).sum(axis=1).mean()
    assert error_of(found)(nodes, 6) == pytest.approx(squared, rel=1e-5)


def test_gaps_are_as_short_as_asked():
    found = responses(1)
    full_steps, _ = best(stretches(error_of(found), NUM_STEPS, 1, longest=3), 3)
    assert max(b - a for a, b in zip(full_steps, (*full_steps[1:], NUM_STEPS), strict=True)) <= 3
    with pytest.raises(DeepCacheError, match="expected more full steps than 2"):
        best(stretches(error_of(found), NUM_STEPS, 1, longest=3), 2)


@pytest.mark.parametrize("degree", [0, 1, 2])
def test_lagranges_weights_give_polynomials_exactly(degree):
    nodes = np.array([710.0, 400.0, 40.0])[: degree + 1]
    weights = lagrange(nodes, 123.0)
    assert weights.sum() == pytest.approx(1)
    assert weights @ nodes**degree == pytest.approx(123.0**degree)
