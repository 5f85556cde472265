"""Laws of the prediction. The oracles are polynomials, which it must reproduce, and the Lagrange form by hand."""

from __future__ import annotations

from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deepcache.cache.prediction import Node, Polynomial, coordinate

TIMESTEPS = st.lists(st.integers(0, 999), min_size=4, max_size=4, unique=True)
COEFFICIENTS = st.lists(st.floats(-2, 2), min_size=3, max_size=3)


def _nodes(timesteps: list[float], values: list[Tensor], steps: list[int] | None = None) -> list[Node]:
    steps = steps or list(range(len(values)))[::-1]
    return [Node(*node) for node in zip(steps, timesteps, [(value,) for value in values], strict=True)]


@given(TIMESTEPS, COEFFICIENTS, st.integers(0, 2))
def test_order_k_reproduces_polynomials_of_degree_k_on_uneven_nodes(
    timesteps: list[int], coefficients: list[float], order: int
) -> None:  # law 7
    def value(t: float) -> Tensor:
        return torch.tensor(
            [sum(c * (t / 1000) ** k for k, c in enumerate(coefficients[: order + 1]))], dtype=torch.float64
        )

    at, *places = (float(t) for t in timesteps)
    (found,) = Polynomial.through(_nodes(places, list(map(value, places)))[: order + 1])(9, at)
    # in float64, but with nodes one apart weights reach 10^6
    torch.testing.assert_close(found, value(at), rtol=1e-7, atol=1e-7)


@given(TIMESTEPS, st.integers(1, 2))
def test_it_is_lagranges_polynomial(timesteps: list[int], order: int) -> None:
    """Exact law for any features: the prediction is the sum of f_i prod_j (t - t_j) / (t_i - t_j)."""
    at, *places = (float(t) for t in timesteps)
    places = places[: order + 1]
    features = list(torch.randn(order + 1, 2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    weights = [prod((at - q) / (p - q) for q in places if q != p) for p in places]
    expected = sum(weight * feature for weight, feature in zip(weights, features, strict=True))
    (found,) = Polynomial.through(_nodes(places, features))(9, at)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-6 * max(map(abs, weights)))


@pytest.mark.parametrize("order", [0, 1, 2])
def test_at_a_node_it_is_that_nodes_feature(order: int) -> None:
    values = [torch.full((1, 2, 2, 2), float(i)) for i in range(order + 1)]
    places = [600.0, 800.0, 950.0][: order + 1]
    (found,) = Polynomial.through(_nodes(places, values))(9, places[0])
    assert torch.equal(found, values[0])


def test_order_one_is_not_exact_on_a_parabola() -> None:
    """Test of the test: a lower order must fail where a higher one passes."""
    values = [torch.tensor([t * t]) for t in (3.0, 5.0)]
    (found,) = Polynomial.through(_nodes([3.0, 5.0], values))(9, 1.0)
    assert found.item() == -7.0  # and not 1


@pytest.mark.parametrize("as_tensor", [False, True])
def test_steps_are_the_coordinate_where_timesteps_of_nodes_repeat(as_tensor: bool) -> None:  # noqa: FBT001
    values = [torch.full((2, 1, 1, 1), value) for value in (10.0, 4.0)]  # at steps 4 and 1
    repeated = coordinate(torch.tensor([500, 500])) if as_tensor else 500.0
    nodes = _nodes([repeated, repeated], values, steps=[4, 1])
    at = torch.tensor([480, 480]) if as_tensor else 480
    (found,) = Polynomial.through(nodes)(6, at)
    assert found.flatten()[0].item() == 14.0


def test_timesteps_repeat_elsewhere_without_harm() -> None:
    """In PLMS a shallow step may have the timestep of a node, while the nodes' timesteps differ."""
    nodes = _nodes([700.0, 900.0], [torch.ones(1), torch.zeros(1)])
    assert Polynomial.through(nodes)(9, 700)[0].item() == 1.0


def test_samples_may_have_timesteps_of_their_own() -> None:
    """Exact law: each sample is predicted as if it were alone; the frames of a video follow each other in a sample."""
    frames, generator = 3, torch.Generator().manual_seed(0)
    places = [torch.tensor([500, 300]), torch.tensor([700, 650])]
    features = [torch.randn(2 * frames, 4, 2, 2, generator=generator) for _ in places]
    nodes = _nodes([coordinate(t) for t in places], features)
    (found,) = Polynomial.through(nodes)(9, torch.tensor([400, 100]))
    for i, at in enumerate((400, 100)):
        rows = slice(i * frames, (i + 1) * frames)
        alone = _nodes([float(t[i]) for t in places], [feature[rows] for feature in features])
        torch.testing.assert_close(
            found[rows], Polynomial.through(alone)(9, at)[0], rtol=1e-5, atol=1e-5
        )  # float32 weights


@pytest.mark.parametrize(
    "timestep", [701, 701.0, torch.tensor(701), torch.tensor([701]), torch.tensor([701.0]).expand(4)], ids=str
)
def test_every_form_of_a_timestep_is_one_coordinate(timestep: Tensor | float) -> None:
    assert coordinate(timestep) == 701.0


def test_prediction_reads_nothing_back_from_the_device() -> None:
    """The meta device has no values, so that reading a value raises."""
    device = torch.device("meta")
    ts = torch.empty(4, device=device)
    feature = torch.empty(2, 4, 2, 2, device=device)
    nodes = [Node(step, coordinate(ts[step]), (feature,)) for step in (2, 1, 0)]
    (found,) = Polynomial.through(nodes)(3, ts[3])
    assert found.shape == feature.shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_prediction_keeps_type_and_arguments(dtype: torch.dtype) -> None:
    features = [torch.randn(1, 2, 2, 2, generator=torch.Generator().manual_seed(i)).to(dtype) for i in range(3)]
    kept = [feature.clone() for feature in features]
    (found,) = Polynomial.through(_nodes([500.0, 600.0, 700.0], features))(9, 450)
    assert found.dtype == dtype
    torch.testing.assert_close(features, kept, rtol=0, atol=0)


def test_every_part_of_a_feature_is_predicted() -> None:
    """Skip blocks pass an image on beside the hidden state."""
    nodes = [Node(i, float(t), (torch.tensor([t]), torch.tensor([2 * t]))) for i, t in ((1, 3.0), (0, 5.0))]
    assert [part.item() for part in Polynomial.through(nodes)(2, 1)] == [1.0, 2.0]
