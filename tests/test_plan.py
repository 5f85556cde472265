"""Laws of plans: which steps are full, and which plan a text or a JSON file describes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcache import CachePlan, DeepCacheError, Interval, quadratic, uniform
from deepcache.plan import EVERY, MOST_STEPS, parse_plan

lawful = settings(deadline=None, database=None)  # a busy machine is slow, and a test run leaves no files

NUM_STEPS = st.integers(1, 300)


@lawful
@given(num_steps=NUM_STEPS, interval=st.integers(1, 400), branch=st.integers(0, 11))
def test_uniform_plan_is_every_nth_step_from_zero(num_steps: int, interval: int, branch: int) -> None:  # law 5
    plan = uniform(num_steps, interval, branch)
    assert plan.full_steps == tuple(step for step in range(num_steps) if step % interval == 0)
    assert plan.num_full == -(-num_steps // interval)
    assert (plan.num_steps, plan.branch) == (num_steps, branch)


@lawful
@given(num_steps=NUM_STEPS)
def test_interval_one_makes_every_step_full(num_steps: int) -> None:
    assert uniform(num_steps, 1).full_steps == tuple(range(num_steps))


@lawful
@given(num_steps=NUM_STEPS, interval=st.integers(1, 400))
def test_last_step_full_adds_the_last_step_and_no_other(num_steps: int, interval: int) -> None:
    plain, more = uniform(num_steps, interval), uniform(num_steps, interval, last_step_full=True)
    assert more.full_steps == tuple(sorted({*plain.full_steps, num_steps - 1}))


@lawful
@given(num_steps=NUM_STEPS, interval=st.integers(1, 400), last=st.booleans())
def test_interval_makes_the_steps_of_the_uniform_plan_full(num_steps: int, interval: int, last: bool) -> None:  # noqa: FBT001
    every, plan = Interval(interval, last_step_full=last), uniform(num_steps, interval, last_step_full=last)
    found = [every.is_full(step, num_steps) for step in range(num_steps)]
    assert found == [plan.is_full(step) for step in range(num_steps)]
    assert every.is_full(num_steps - 1) == ((num_steps - 1) % interval == 0)  # where their number is not known


def test_quadratic_plan_with_the_last_step_full() -> None:
    plain, more = (quadratic(50, 10, center=15, power=1.4, last_step_full=last) for last in (False, True))
    assert more.full_steps == (*plain.full_steps, 49)


@pytest.mark.parametrize("order", EVERY)
def test_plan_has_its_order(order: Any) -> None:
    assert {plan.order for plan in (uniform(9, 2, 1, order), quadratic(9, 3, 4, 1.2, 1, order))} == {order}


@pytest.mark.parametrize("order", [-1, 3, 1.5, True, "1", "AUTO", None])
def test_order_that_there_is_not_is_refused(order: Any) -> None:
    for make in (lambda: uniform(9, 2, order=order), lambda: Interval(2, order=order)):
        with pytest.raises(DeepCacheError, match="expected order to be 'auto' or one of 0, 1, 2, got"):
            make()


@lawful
@given(num_steps=NUM_STEPS, interval=st.integers(1, 400))
def test_equal_plans_are_equal_and_hash_alike(num_steps: int, interval: int) -> None:
    assert len({uniform(num_steps, interval), uniform(num_steps, interval)}) == 1


@pytest.mark.parametrize(
    ("signed_root", "steps"),
    [
        (False, (0, 5, 9, 13, 17, 21, 26, 31, 37, 43)),
        (True, (0, 6, 11, 14, 15, 19, 24, 29, 35, 42)),
    ],
    ids=["released code", "signed root"],
)
def test_quadratic_plans_are_the_stored_ones(signed_root: bool, steps: tuple[int, ...]) -> None:  # noqa: FBT001
    """The stored values come from the released code and from equation 7."""
    assert quadratic(50, 10, center=15, power=1.4, branch=3, signed_root=signed_root) == CachePlan(50, steps, 3)


# Table 9 of the paper: N, center and power that its search chose for 250 steps
@pytest.mark.parametrize(
    ("interval", "center", "power"), [(2, 120, 1.2), (3, 120, 1.2), (5, 110, 1.4), (10, 110, 1.2), (20, 120, 1.4)]
)
@pytest.mark.parametrize("signed_root", [False, True])
def test_papers_own_settings_make_plans(interval: int, center: int, power: float, signed_root: bool) -> None:  # noqa: FBT001
    num_full = uniform(250, interval).num_full
    assert quadratic(250, num_full, center, power, signed_root=signed_root).num_full == num_full


@settings(lawful, max_examples=300)
@given(st.data(), st.booleans())
def test_quadratic_plan_has_exactly_its_number_of_ascending_steps(data: st.DataObject, signed_root: bool) -> None:  # noqa: FBT001
    """Exact law: the only possible error is that no power fits."""
    num_steps = data.draw(st.integers(1, 120), label="num_steps")
    num_full = data.draw(st.integers(1, num_steps), label="num_full")
    center = data.draw(st.one_of(st.integers(0, num_steps), st.floats(0, num_steps)), label="center")
    power = data.draw(st.floats(1, 4, exclude_min=True), label="power")
    try:
        plan = quadratic(num_steps, num_full, center, power, signed_root=signed_root)
    except DeepCacheError as error:
        if "no power from" not in str(error):
            raise
        return
    assert plan.num_full == num_full
    assert plan.full_steps[0] == 0
    assert all(a < b for a, b in pairwise((*plan.full_steps, num_steps)))


@lawful
@given(num_steps=st.integers(20, 200), branch=st.integers(0, 11))
def test_few_full_steps_always_fit(num_steps: int, branch: int) -> None:
    """Test of the test: the law above must not pass because every plan is refused."""
    assert quadratic(num_steps, num_steps // 10, num_steps // 3, 1.4, branch).num_full == num_steps // 10


def test_signed_root_is_dense_around_its_center() -> None:
    steps = quadratic(250, 25, center=120, power=2.0, signed_root=True).full_steps
    gaps = {b - a: a for a, b in pairwise(steps)}
    assert abs(gaps[min(gaps)] - 120) < 25


@pytest.mark.parametrize("make", [lambda n: uniform(10, n), lambda n: uniform(n, 1), lambda n: CachePlan(n, (0,))])
@pytest.mark.parametrize("value", [0, -1, 2.5, 2.0, True, "2", None])
def test_number_that_is_not_a_positive_whole_is_refused(make: Any, value: object) -> None:
    with pytest.raises(DeepCacheError, match="whole number of at least 1") as caught:
        make(value)
    assert f"got {value!r}" in str(caught.value)


def test_bad_interval_is_named() -> None:
    with pytest.raises(DeepCacheError, match=r"expected interval to be a whole number of at least 1, got 0"):
        uniform(50, 0)


@pytest.mark.parametrize("branch", [-2, -1.0, 1.0, True, None])
def test_bad_branch_is_refused(branch: Any) -> None:
    with pytest.raises(DeepCacheError, match="branch to be a whole number of at least -1"):
        uniform(10, 2, branch)


@pytest.mark.parametrize("steps", [(), (1, 2), (0, 2, 1), (0, 2, 2), (0, 10), (0, 11)])
def test_full_steps_that_are_no_plan_are_refused(steps: tuple[int, ...]) -> None:
    with pytest.raises(DeepCacheError, match="ascending full steps that begin with 0 and stay below num_steps = 10"):
        CachePlan(10, steps)


@pytest.mark.parametrize("steps", [(0, 1.5), (0, -2), (0, True)])
def test_full_step_that_is_not_whole_is_refused(steps: tuple[Any, ...]) -> None:
    with pytest.raises(DeepCacheError, match="an element of full_steps to be a whole number"):
        CachePlan(10, steps)
    with pytest.raises(DeepCacheError, match="an element of idle_steps to be a whole number"):
        CachePlan(10, (0,), idle_steps=steps)


@pytest.mark.parametrize(
    ("steps", "branch"), [((2, 1), 0), ((1, 1), 0), ((0, 1), 0), ((5,), 0), ((3, 10), 0), ((1,), -1), ((10,), 3)]
)
def test_idle_steps_that_are_no_plan_are_refused(steps: tuple[int, ...], branch: int) -> None:
    """Out of order, twice, full, beyond the last step, or beside a branch at which every step is idle."""
    with pytest.raises(DeepCacheError, match="ascending idle steps that are not full and stay below num_steps = 10"):
        CachePlan(10, (0, 5), branch, idle_steps=steps)


@lawful
@given(num_steps=NUM_STEPS, interval=st.integers(1, 40), every=st.integers(1, 9), branch=st.integers(-1, 3))
def test_every_step_is_full_shallow_or_idle(num_steps: int, interval: int, every: int, branch: int) -> None:
    """Of the steps after a full step, every M-th is shallow; at branch -1 none is."""
    plan = uniform(num_steps, interval, branch, shallow_every=every)
    rest = [step for step in range(num_steps) if step % interval]
    shallow = [step for step in rest if step % interval % every == 0 and branch >= 0]
    assert [step for step in rest if not plan.is_idle(step)] == shallow
    assert (plan.num_full, plan.num_shallow) == (num_steps - len(rest), len(shallow))
    assert plan.num_full + plan.num_shallow + plan.num_idle == num_steps
    assert plan.has_idle_steps == (plan.num_idle > 0 or branch == -1)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, None])
def test_shallow_every_is_a_whole_number(value: Any) -> None:
    with pytest.raises(DeepCacheError, match="expected shallow_every to be a whole number of at least 1"):
        uniform(10, 3, shallow_every=value)


@pytest.mark.parametrize(
    ("num_full", "center", "power"),
    [(11, 5, 1.4), (5, -1, 1.4), (5, 11, 1.4), (5, 5, 1.0), (5, 5, 0.5), (5, float("nan"), 1.4), (5, 5, float("nan"))],
)
def test_quadratic_argument_out_of_range_is_refused(num_full: int, center: float, power: float) -> None:
    with pytest.raises(DeepCacheError, match="expected num_full <= num_steps, 0 <= center"):
        quadratic(10, num_full, center, power)


@pytest.mark.parametrize("value", [None, "15", [15], 1j, True, 10**400, np.array([1.0, 2.0])])
def test_what_is_no_number_is_refused(value: Any) -> None:
    with pytest.raises(DeepCacheError, match="expected center to be a number"):
        quadratic(50, 10, value, 1.4)
    with pytest.raises(DeepCacheError, match="expected power to be a number"):
        quadratic(50, 10, 15, value)


@pytest.mark.parametrize("value", [np.array(1), np.array([1, 2]), np.array(["auto"]), "1", None, [1], True, 3, 1.0])
def test_an_order_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(DeepCacheError, match="expected order to be 'auto' or one of 0, 1, 2"):
        uniform(50, 3, 0, value)
    with pytest.raises(DeepCacheError, match="expected interval to be a whole number"):
        uniform(50, -(10**5_000))
    assert uniform(50, 3, 0, np.int64(1)).order == 1


def test_impossible_count_is_refused_with_what_to_do() -> None:
    with pytest.raises(DeepCacheError, match=r"no power from 1\.2 down to 1 gives 10 different full steps of 10"):
        quadratic(10, 10, 5, 1.2)


@pytest.mark.parametrize(
    ("text", "plan"),
    [
        ("uncached", None),
        ("uniform,interval=3", uniform(50, 3)),
        ("uniform, interval=3, branch=2, order=1", uniform(50, 3, 2, 1)),
        ("uniform,interval=3,last_step_full", uniform(50, 3, last_step_full=True)),
        ("uniform,interval=3,branch=-1,order=auto", uniform(50, 3, -1)),
        ("uniform,interval=6,shallow_every=2,branch=1", uniform(50, 6, 1, shallow_every=2)),
        ("quadratic,num_full=10,center=15,power=1.4,branch=-1,order=0", quadratic(50, 10, 15, 1.4, -1, 0)),
        ("quadratic,num_full=10,center=15,power=1.4", quadratic(50, 10, 15, 1.4)),
        ("quadratic,power=1.4,num_full=10,center=15,branch=1", quadratic(50, 10, 15, 1.4, 1)),
        (
            "quadratic,num_full=10,center=15.5,power=1.4,signed_root,last_step_full",
            quadratic(50, 10, 15.5, 1.4, signed_root=True, last_step_full=True),
        ),
    ],
)
def test_a_text_stands_for_what_the_function_makes(text, plan):
    assert parse_plan(text, 50) == plan


@pytest.mark.parametrize(
    "plan",
    [uniform(51, 4, 1, 2), quadratic(50, 7, 20, 1.3), CachePlan(3, (0, 2), -1), uniform(9, 4, 1, shallow_every=2)],
)
def test_json_gives_the_plan_again_also_from_a_file(tmp_path, plan):
    assert CachePlan.from_json(plan.to_json()) == plan
    path = tmp_path / "plan.json"
    plan.save(path)
    assert CachePlan.load(path) == plan
    assert parse_plan(str(path), plan.num_steps) == plan
    with pytest.raises(DeepCacheError, match=f"expected a plan of 5 U-Net calls, got one of {plan.num_steps}"):
        parse_plan(str(path), 5)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "none",
        "uniform",
        "uniform,3",
        "uniform,interval=3,interval=3",
        "uniform,interval=0",
        "uniform,interval=2.5",
        "uniform,interval=-1",
        "uniform,interval=3,center=2",
        "uniform,interval=3,order=3",
        "uniform,interval=3,order=",
        "uniform,interval=auto",
        "uniform,interval=3,branch=-2",
        "uniform,interval=3,branch=auto",
        "uniform,interval=3,shallow_every=0",
        "quadratic,num_full=10,center=15,power=1.4,shallow_every=2",
        "uniform,interval=3,last_step_full=1",
        "uniform,interval=3,num_steps=5",
        "quadratic,num_full=10",
        "quadratic,num_full=10,center=15,power=1",
        "uncached,interval=3",
    ],
)
def test_any_other_text_is_refused_in_one_line(text):
    with pytest.raises(DeepCacheError, match="expected") as caught:
        parse_plan(text, 50)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["interval=", "interval=3,branch=", "interval=3,order="])
def test_numbers_of_any_length_and_names_of_any_length_are_one_line(name):
    for text in (f"uniform,{name}{'9' * 5_000}", "x" * 5_000, "a\0b"):
        with pytest.raises(DeepCacheError, match="expected a plan") as caught:
            parse_plan(text, 50)
        assert len(str(caught.value)) < 800


@pytest.mark.parametrize("path", [None, 3, b"plan.json", ["plan.json"]])
def test_what_is_no_path_is_one_line(path):
    with pytest.raises(DeepCacheError, match="expected a plan's JSON"):
        CachePlan.load(path)


@pytest.mark.parametrize(
    "text",
    [
        '{"num_steps": 3, "full_steps": [0, "1"]}',
        '{"num_steps": 3, "full_steps": {"0": 1}}',
        '{"num_steps": 3, "full_steps": [0], "order": [1]}',
        '{"num_steps": 3, "full_steps": [0], "order": {}}',
        '{"num_steps": 3, "full_steps": [0], "order": "best"}',
        '{"num_steps": 3, "full_steps": [0], "idle_steps": 1}',
        '{"num_steps": 3, "full_steps": [0], "idle_steps": [0]}',
        '{"num_steps": 3, "full_steps": [0], "branch": -1, "idle_steps": [1]}',
        '{"num_steps": null, "full_steps": [0]}',
        '{"num_steps": 1' + "0" * 400 + ', "full_steps": [0]}',
        '{"num_steps": ' + "9" * 5_000 + ', "full_steps": [0]}',
        '{"num_steps": 3, "full_steps": ' + "[" * 20_000 + "]" * 20_000 + "}",
        '{"num_steps": 3, "full_steps": [0, ' + "1, " * 100_000 + "1]}",
    ],
)
def test_values_that_make_no_plan_are_one_short_line(tmp_path, text):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(DeepCacheError, match="expected") as caught:
        CachePlan.load(tmp_path / "plan.json")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 800


def test_plans_that_were_saved_before_there_were_idle_steps_load_as_they_were() -> None:
    """Stored values: the two forms of the JSON that earlier versions wrote."""
    assert CachePlan.from_json('{"num_steps": 9, "full_steps": [0, 4], "branch": 1, "order": 2}') == CachePlan(
        9, (0, 4), 1, 2
    )
    plan = uniform(9, 4, 1, 1)
    assert plan.to_json() == '{"num_steps": 9, "full_steps": [0, 4, 8], "branch": 1, "order": 1}'
    assert '"idle_steps": [1, 3, 5, 7]' in uniform(9, 4, 1, 1, shallow_every=2).to_json()


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"num_steps": 3}', '{"num_steps": 3, "full_steps": [0], "depth": 1}'],
)
def test_json_of_something_else_is_refused_by_its_source(text):
    with pytest.raises(DeepCacheError, match=r"in plan\.json") as caught:
        CachePlan.from_json(text, "plan.json")
    assert "\n" not in str(caught.value)
    with pytest.raises(DeepCacheError, match="begin with 0"):
        CachePlan.from_json('{"num_steps": 3, "full_steps": [1]}')


def test_a_plan_of_very_many_steps_is_made_at_once() -> None:
    """Work that is quadratic in 100,000 steps would take minutes."""
    plan = uniform(MOST_STEPS, 4, shallow_every=2)
    assert (plan.num_full, plan.num_shallow, plan.num_idle) == tuple(MOST_STEPS * part // 4 for part in (1, 1, 2))
