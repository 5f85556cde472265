"""What Pareto panels are held to, on made-up points whose answer is plain arithmetic."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bench.pareto.aims import (
    FEWER,
    PREDICTED,
    Point,
    chosen,
    gain,
    lead,
    least_lead,
    num_nearer,
    prediction,
    psnr_of_mean,
    reuse,
)
from bench.pareto.equal_cost import Recorded, at_any_cost, at_equal_cost, by_kind, kind_of, nearer, panels
from bench.pareto.recommend import is_safe
from bench.pareto.recommend import main as recommend
from deepcache import CachePlan, uniform
from deepcache.plan import IDLE
from deepcache.results.layout import Layout
from deepcache.results.record import Record


def point(curve: str, share: float, *, chosen_by: float, scored: list[float], **key: int) -> Point:
    metrics = {"psnr_median_db": float(np.median(scored)), "psnr_db": float(psnr_of_mean(np.array(scored), axis=0))}
    name = ", N=".join([curve, *map(str, key.values())])
    return Point({"curve": curve, **key}, name, share, metrics, {"psnr_db": scored}, {"psnr_db": chosen_by})


REUSE = point("order 0", 0.5, chosen_by=30, scored=[30.0, 32.0, 34.0], interval=3)
LUCKY = point("order 1", 0.5, chosen_by=35, scored=[60.0, 60.0, 60.0], interval=3)
STEADY = point("order 2", 0.5, chosen_by=40, scored=[40.0, 42.0, 44.0], interval=3)
DEAR = point("tuned", 0.51, chosen_by=70, scored=[70.0, 70.0, 70.0])
STEPS = point("fewer steps", 0.505, chosen_by=38, scored=[37.0, 38.0, 39.0], steps=25)
DEFAULT = point("order auto", 0.5, chosen_by=33, scored=[36.0, 36.0, 36.0], interval=3)
POINTS = [REUSE, LUCKY, STEADY, DEAR, STEPS, DEFAULT]


def test_the_choosing_seeds_choose_and_the_others_score() -> None:
    assert prediction(POINTS, 3) is STEADY
    found = gain(POINTS, 3, np.median)
    assert found == (10.0, 10.0, 10.0)  # paired: each seed gains the same
    assert reuse(POINTS, 3) is REUSE
    assert reuse(POINTS, 5) is None


def test_nothing_may_cost_more_but_fewer_steps_by_a_part_of_one() -> None:
    assert chosen(POINTS, PREDICTED, 0.51) is DEAR
    assert chosen(POINTS, PREDICTED, 0.49) is None
    assert chosen(POINTS, (FEWER,), 0.5) is STEPS
    assert chosen(POINTS, (FEWER,), 0.49) is None


def test_the_lead_is_over_the_fewer_steps_that_are_chosen() -> None:
    assert lead(POINTS, 0.5) == 42.0 - 38.0
    assert lead([STEADY], 0.5) == math.inf
    assert lead([STEPS], 0.5) == -math.inf
    assert lead([], 0.5) is None
    assert least_lead(POINTS, "psnr_db") == 4.0
    assert least_lead([STEPS, DEAR], "psnr_db") is None  # at 0.5 there are fewer steps and no prediction


def test_a_panel_leads_where_its_chosen_prediction_is_nearer() -> None:
    behind = [STEADY, point("fewer steps", 0.5, chosen_by=50, scored=[50.0, 50.0, 50.0], steps=25)]
    assert num_nearer([POINTS, behind, [STEPS], [STEADY]], 0.5) == 2  # POINTS, and STEADY alone
    assert num_nearer([POINTS], 0.3) == 0


def test_the_mean_is_of_squared_errors() -> None:
    """Exact: the mean of errors of 20 and 40 dB."""
    assert psnr_of_mean(np.array([20.0, 40.0]), axis=0) == pytest.approx(-10 * math.log10((0.01 + 0.0001) / 2))


PLANS = {
    "reuse": CachePlan(50, (0, 25), order=0),
    "predicted shallow": CachePlan(50, (0, 25), order=1),
    "idle": CachePlan(50, (0, 25), IDLE, 0),
    "mixed": CachePlan(50, (0, 25), 0, 1, (3,)),
}


@pytest.mark.parametrize("kind", PLANS)
def test_a_plan_is_shown_under_its_kind_whatever_its_curve(kind: str) -> None:
    one = recorded(STEADY, PLANS[kind])
    assert kind_of(one) == kind
    row = by_kind(("mini-sd", "plms 50"), [one, recorded(DEAR, PLANS[kind]), recorded(STEPS, None)], 0.5)
    shown = {kind: f"{one.metrics['psnr_median_db']:.1f}", "fewer steps": "38.0"}  # DEAR costs more than half
    assert {name: row[name] for name in ("fewer steps", *PLANS)} == {**dict.fromkeys(PLANS, "-"), **shown}


WITHIN_REACH = CachePlan(50, tuple(range(0, 50, 5)), 1, 2, (3,))


def recorded(one: Point, plan: CachePlan | None) -> Recorded:
    settings = {} if plan is None else {"plan": plan.to_json()}
    found = Record(Layout("pareto"), one.key, settings, one.metrics, {}, "passed", one.per_seed)
    return Recorded(one.key, one.name, one.share, one.metrics, one.per_seed, one.choosing, found)


def test_tables_and_plans_come_from_records(tmp_path, monkeypatch) -> None:
    lines = []
    for one in POINTS:
        plan = WITHIN_REACH.to_json()
        settings = {"model": "mini-sd", "point": one.name, "num_steps": 50, "plan": plan}
        settings |= {"choosing_psnr_db": one.choosing["psnr_db"]}
        metrics = {"share": one.share, "num_full": 2, "num_shallow": 2, **one.metrics}
        key = {"model": "mini-sd", "solver": "plms", "uncached_steps": 50, **one.key}
        lines.append(Record(Layout("pareto"), key, settings, metrics, {}, "passed", one.per_seed))
    monkeypatch.setattr("bench.pareto.equal_cost.read", lambda _: lines)
    monkeypatch.setattr("bench.pareto.recommend.PLANS", tmp_path)
    monkeypatch.setattr("bench.pareto.recommend.plan_path", lambda *name: tmp_path / "-".join(map(str, name[:3])))
    (points,) = panels(tmp_path).values()
    row = at_equal_cost(("mini-sd", "plms 50"), points, 3)
    shown = {"fewer steps": "38.0", "reuse": "32.0", "default, its MACs (%)": "36.0, 50", "chosen": "42.0"}
    assert shown.items() <= row.items()
    assert row["what it is"] == "order 2, N=3"
    assert nearer([points], 3) == (1, 1)
    assert [each["50%"] for each in at_any_cost([points])] == [1, 27, 1, 0, 0, 0, 0, 0]
    recommend(tmp_path)
    recommended = CachePlan.load(tmp_path / "mini-sd-plms-50")
    assert recommended == WITHIN_REACH


@pytest.mark.parametrize(("order", "is_right"), [(0, True), (1, False), (2, False), ("auto", True)])
def test_a_polynomial_beyond_the_reach_of_the_default_is_not_recommended(order: Any, is_right: bool) -> None:  # noqa: FBT001
    """12 full steps at guidance 7.5 are a reach of 0.63, at which single seeds tip that eight seeds need not show."""
    key = {"model": "mini-sd", "solver": "plms", "guidance_scale": 7.5}
    found = recorded(STEADY, replace(uniform(24, 2), order=order))
    assert is_safe(replace(found, record=replace(found.record, key=key))) is is_right
    assert is_safe(replace(found, record=replace(found.record, key={**key, "guidance_scale": None})))
