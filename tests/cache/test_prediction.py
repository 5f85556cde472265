"""Laws of the prediction. The oracles are polynomials, which it must reproduce, and the Lagrange form by hand."""

from __future__ import annotations

from math import inf, prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deepcache.cache.prediction import Halves, Node, Polynomial, Proven, Setting, coordinate, predictor

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


# Order "auto". Nodes are a step apart; a column of numbers is a batch, and the newest comes first.


def _line(*values: list[float], gap: int = 1, dtype: torch.dtype = torch.float64) -> list[Node]:
    """Nodes at steps and timesteps `gap` apart whose features are batches of images of a single number."""
    count = len(values)
    images = [
        torch.tensor(batch, dtype=dtype).reshape(-1, 1, 1, 1).expand(-1, 2, 2, 2).contiguous() for batch in values
    ]
    return [Node(gap * (count - 1 - i), float(gap * i), (image,)) for i, image in enumerate(images)]


def _auto(nodes: list[Node], setting: Setting) -> list[float]:
    """The prediction of order "auto" one step after the newest node, as a number for each sample."""
    found = predictor(nodes, "auto", setting)
    (image,) = found(nodes[0].step + 1, nodes[0].timestep - 1)
    assert image.dtype == nodes[0].feature[0].dtype
    return [float(each) for each in image[:, 0, 0, 0]]


BEYOND = Setting(8.0, 10)  # a reach of 0.8 between neighbouring steps
SHORT_AND_LONG = (10, 9)  # steps of which one is a share of 0.1, and of more


@pytest.mark.parametrize(
    ("guidance", "num_steps", "gap", "degree"),
    [
        *((1.0, 10, 2, 2), (2.0, 20, 2, 2), (7.5, 75, 2, 2), (1.0, 100, 1, 2)),  # a reach of 0.2 or less
        *((1.0, 9, 2, 1), (1.0, 5, 2, 1), (2.25, 10, 2, 1), (6.75, 60, 4, 1), (7.5, 50, 3, 1)),  # of 0.45 or less
        *((1.0, 3, 2, None), (2.6, 10, 2, None), (7.5, 59, 4, None), (7.5, 25, 2, None)),  # beyond
        *((1.0, None, 1, None), (None, 1000, 1, None), (None, None, 1, None)),  # where guidance or steps are unknown
    ],
)
def test_auto_takes_the_highest_order_within_reach(
    guidance: float | None, num_steps: int | None, gap: int, degree: int | None
) -> None:
    """The reach is guidance times the share of all steps that lies between the two newest nodes."""
    nodes = _line([4.0], [2.0], [1.0], gap=gap)
    nodes[2] = nodes[2]._replace(step=-99)  # how far the third node is does not matter
    found = predictor(nodes, "auto", Setting(guidance, num_steps))
    if degree is None:
        assert isinstance(found, Proven)
    else:
        assert isinstance(found, Polynomial)
        assert len(found.nodes) == degree + 1


def test_auto_reuses_where_the_solver_adds_noise() -> None:
    nodes = _line([4.0], [2.0], [1.0])
    for guidance, num_steps in ((1.0, 100), (7.5, 10), (None, None)):
        found = predictor(nodes, "auto", Setting(guidance, num_steps, adds_noise=True))
        assert torch.equal(found(nodes[0].step + 1, nodes[0].timestep - 1)[0], nodes[0].feature[0])


def test_too_few_nodes_give_a_lower_order() -> None:
    setting = Setting(1.0, 100)
    kept = [len(predictor(_line(*[[1.0]] * count), "auto", setting).nodes) for count in (1, 2, 3)]
    assert kept == [1, 2, 3]
    assert isinstance(predictor(_line([1.0]), "auto", BEYOND), Polynomial)  # order 0


@pytest.mark.parametrize("order", [0, 1, 2])
def test_another_order_is_the_plans_at_every_reach(order: int) -> None:
    found = predictor(_line([1.0], [2.0], [3.0]), order, Setting(None, None, Halves.TOGETHER))
    assert isinstance(found, Polynomial)
    assert len(found.nodes) == order + 1


def test_order_one_is_proved_by_three_quarters_of_the_error_of_order_zero() -> None:
    """At 0, 4 and 20 order 0 was wrong by 16 and order 1 by 12: exactly three quarters."""
    assert _auto(_line([20.0], [4.0], [0.0]), BEYOND) == [36.0]
    assert _auto(_line([20.001], [4.0], [0.0]), BEYOND) == [20.001]
    assert _auto(_line([0.0], [4.0], [0.0]), BEYOND) == [0.0]  # it turned round
    assert _auto(_line([2.0], [1.0], [0.0]), BEYOND) == [3.0]  # a line
    assert _auto(_line([2.0], [2.0], [2.0]), BEYOND) == [2.0]  # nothing moved


@pytest.mark.parametrize("halves", [Halves.NONE, Halves.TOGETHER])
@given(data=st.data())
def test_what_is_proved_for_one_sample_says_nothing_of_another(halves: Halves, data: st.DataObject) -> None:
    """An exact law: a batch is predicted as each sample, with both of its halves, is alone."""
    numbers = st.lists(st.integers(-9, 9).map(float), min_size=6, max_size=6)
    batches = data.draw(st.tuples(numbers, numbers, numbers))
    setting = Setting(7.5, 10, halves)
    found = _auto(_line(*batches), setting)
    rows = [(i, i + 3) for i in range(3)] if halves is Halves.TOGETHER else [(i,) for i in range(6)]
    for row in rows:
        alone = _auto(_line(*([batch[i] for i in row] for batch in batches)), setting)
        assert alone == [found[i] for i in row]


def test_samples_of_one_batch_are_extrapolated_or_reused() -> None:
    """Test of the test above."""
    assert _auto(_line([20.0, 20.001], [4.0, 4.0], [0.0, 0.0]), BEYOND) == [36.0, 20.001]


# mean and difference of the halves at three nodes, the newest first: what each is expected to be one step later
MOVES = {"straight": ([6.0, 4.0, 2.0], 8.0), "turning": ([0.0, 4.0, 2.0], 0.0)}


@pytest.mark.parametrize("mean", MOVES)
@pytest.mark.parametrize("difference", MOVES)
def test_mean_and_difference_of_the_halves_are_proved_apart(mean: str, difference: str) -> None:
    (means, next_mean), (differences, next_difference) = MOVES[mean], MOVES[difference]
    halves = [[m - d / 2, m + d / 2] for m, d in zip(means, differences, strict=True)]
    expected = [next_mean - next_difference / 2, next_mean + next_difference / 2]
    assert _auto(_line(*halves), Setting(7.5, 10, Halves.TOGETHER)) == expected
    one, two = (
        predictor(_line(*([half[i]] for half in halves)), "auto", Setting(7.5, 10, Halves.APART)) for i in (0, 1)
    )
    assert isinstance(one, Proven)
    assert isinstance(two, Proven)
    pairs = (one.with_partner(two), two.with_partner(one))
    assert [float(pair(3, -1.0)[0][0, 0, 0, 0]) for pair in pairs] == expected


def test_half_without_its_partner_is_reused() -> None:
    assert _auto(_line([6.0], [4.0], [2.0]), Setting(7.5, 10, Halves.APART)) == [6.0]


@pytest.mark.parametrize("num_steps", SHORT_AND_LONG)
def test_without_proof_the_mean_moves_where_the_interval_is_short(num_steps: int) -> None:
    """Two nodes: the mean went from 2 to 4, and the difference from 4 to 8, which is reused."""
    found = _auto(_line([0.0, 8.0], [0.0, 4.0]), Setting(7.5, num_steps, Halves.TOGETHER))
    assert found == ([2.0, 10.0] if num_steps == SHORT_AND_LONG[0] else [0.0, 8.0])
    alone = _auto(_line([4.0], [2.0]), Setting(7.5, num_steps))
    assert alone == ([6.0] if num_steps == SHORT_AND_LONG[0] else [4.0])
    assert _auto(_line([4.0], [2.0]), Setting(None, None)) == [4.0]


@pytest.mark.parametrize("halves", Halves)
@pytest.mark.parametrize("count", [2, 3])
def test_auto_at_the_newest_node_is_its_feature(halves: Halves, count: int) -> None:
    """Bit for bit, whatever was proved."""
    generator = torch.Generator().manual_seed(0)
    nodes = _nodes([500.0, 700.0, 800.0][:count], list(torch.randn(count, 4, 2, 3, 3, generator=generator)))
    for setting in (Setting(7.5, 3, halves), Setting(None, None, halves), Setting(1.0, 4, halves)):
        (found,) = predictor(nodes, "auto", setting)(count - 1, 500.0)
        assert torch.equal(found, nodes[0].feature[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("halves", Halves)
def test_auto_keeps_type_and_arguments(halves: Halves, dtype: torch.dtype) -> None:
    """Errors are measured in float32: the squares of 300 overflow in float16."""
    nodes = _line([900.0, 300.0], [600.0, 300.0], [300.0, 300.0], dtype=dtype)
    kept = [node.feature[0].clone() for node in nodes]
    found = _auto(nodes, Setting(7.5, 10, halves))
    assert found == ([900.0, 300.0] if halves is Halves.APART else [1200.0, 300.0])
    torch.testing.assert_close([node.feature[0] for node in nodes], kept, rtol=0, atol=0)


@pytest.mark.parametrize("halves", Halves)
def test_auto_reads_nothing_back_from_the_device(halves: Halves) -> None:
    device = torch.device("meta")
    ts, features = torch.empty(4, device=device), torch.empty(3, 2, 4, 2, 2, device=device)
    nodes = [Node(step, coordinate(ts[step]), (features[step],)) for step in (2, 1, 0)]
    (found,) = predictor(nodes, "auto", Setting(7.5, 10, halves))(3, ts[3])
    assert found.shape == features[0].shape


@pytest.mark.parametrize("halves", [Halves.NONE, Halves.TOGETHER])
def test_errors_are_dropped_once_they_have_proved(halves: Halves) -> None:
    """They are as large as features, in float32."""
    found = predictor(_line([1.0, 2.0], [0.0, 0.0], [0.0, 1.0]), "auto", Setting(7.5, 10, halves))
    assert isinstance(found, Proven)
    assert found.errors == ()


def test_halves_of_other_steps_are_no_pair() -> None:
    setting = Setting(7.5, 10, Halves.APART)
    one = predictor(_line([3.0], [2.0], [1.0]), "auto", setting)
    fewer = predictor(_line([3.0], [2.0]), "auto", setting)
    later = predictor([node._replace(step=node.step + 1) for node in _line([3.0], [2.0], [1.0])], "auto", setting)
    assert isinstance(one, Proven)
    pairs = [(other, one.is_half_of(other)) for other in (one, fewer, later) if isinstance(other, Proven)]
    assert [is_half for _, is_half in pairs] == [True, False, False]
    assert not one.with_partner(one).is_half_of(one)


def test_reach_is_infinite_where_it_is_unknown() -> None:
    nodes = _line([1.0], [1.0])
    assert Setting(None, 10).reach(nodes) == Setting(7.5, None).reach(nodes) == Setting(None, None).reach(nodes) == inf
    assert Setting(2.0, 10).reach(nodes) == 0.2
