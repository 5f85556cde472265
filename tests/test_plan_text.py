"""Plans as text and as JSON stand for the plans that the library's functions make (exact laws)."""

from __future__ import annotations

import pytest

from deepcache import CachePlan, quadratic, uniform
from deepcache.errors import DeepCacheError
from deepcache.plan_text import from_json, load_plan, parse, to_json


@pytest.mark.parametrize(
    ("text", "plan"),
    [
        ("uncached", None),
        ("uniform,interval=3", uniform(50, 3)),
        ("uniform, interval=3, branch=2, order=1", uniform(50, 3, 2, 1)),
        ("uniform,interval=3,last_step_full", uniform(50, 3, last_step_full=True)),
        ("quadratic,num_full=10,center=15,power=1.4", quadratic(50, 10, 15, 1.4)),
        ("quadratic,power=1.4,num_full=10,center=15,branch=1", quadratic(50, 10, 15, 1.4, 1)),
        (
            "quadratic,num_full=10,center=15.5,power=1.4,signed_root,last_step_full",
            quadratic(50, 10, 15.5, 1.4, signed_root=True, last_step_full=True),
        ),
    ],
)
def test_a_text_stands_for_what_the_function_makes(text, plan):
    assert parse(text, 50) == plan


@pytest.mark.parametrize("plan", [uniform(51, 4, 1, 2), quadratic(50, 7, 20, 1.3), CachePlan(3, (0, 2))])
def test_json_gives_the_plan_again_also_from_a_file(tmp_path, plan):
    assert from_json(to_json(plan)) == plan
    path = tmp_path / "plan.json"
    path.write_text(to_json(plan))
    assert parse(str(path), plan.num_steps) == plan
    with pytest.raises(DeepCacheError, match=f"expected a plan of 5 U-Net calls, got one of {plan.num_steps}"):
        parse(str(path), 5)


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
        "uniform,interval=3,last_step_full=1",
        "uniform,interval=3,num_steps=5",
        "quadratic,num_full=10",
        "quadratic,num_full=10,center=15,power=1",
        "uncached,interval=3",
    ],
)
def test_any_other_text_is_refused_in_one_line(text):
    with pytest.raises(DeepCacheError, match="expected") as caught:
        parse(text, 50)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["interval=", "interval=3,branch=", "interval=3,order="])
def test_numbers_of_any_length_and_names_of_any_length_are_one_line(name):
    for text in (f"uniform,{name}{'9' * 5_000}", "x" * 5_000, "a\0b"):
        with pytest.raises(DeepCacheError, match="expected a plan") as caught:
            parse(text, 50)
        assert len(str(caught.value)) < 800


@pytest.mark.parametrize("path", [None, 3, b"plan.json", ["plan.json"]])
def test_what_is_no_path_is_one_line(path):
    with pytest.raises(DeepCacheError, match="expected a plan's JSON"):
        load_plan(path)


@pytest.mark.parametrize(
    "text",
    [
        '{"num_steps": 3, "full_steps": [0, "1"]}',
        '{"num_steps": 3, "full_steps": {"0": 1}}',
        '{"num_steps": 3, "full_steps": [0], "order": [1]}',
        '{"num_steps": 3, "full_steps": [0], "order": {}}',
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
        load_plan(tmp_path / "plan.json")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 800


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"num_steps": 3}', '{"num_steps": 3, "full_steps": [0], "depth": 1}'],
)
def test_json_of_something_else_is_refused_by_its_source(text):
    with pytest.raises(DeepCacheError, match=r"in plan\.json") as caught:
        from_json(text, "plan.json")
    assert "\n" not in str(caught.value)
    with pytest.raises(DeepCacheError, match="begin with 0"):
        from_json('{"num_steps": 3, "full_steps": [1]}')
