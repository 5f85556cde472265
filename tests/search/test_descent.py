"""Descent on images: the plan that is found costs the same and is never farther from the uncached images."""

from __future__ import annotations

import numpy as np
import pytest

from deepcache import CachePlan, DeepCacheError, cached, models, uniform
from deepcache.metrics.fidelity import psnr_each
from deepcache.sampling.conditions import conditions_of
from deepcache.sampling.samples import sample
from deepcache.sampling.schedulers import scheduler
from deepcache.sampling.workload import Sampling, Workload
from deepcache.search import descent
from deepcache.search.descent import descended, descended_on_images

STEPS = 6
SEEDS = range(5_000, 5_002)
OPTIONS = {"guidance_scale": 1.5, "progress": False}


@pytest.fixture(scope="module")
def workload() -> Workload:
    pipe = models.load("mini-ldm")
    pipe.scheduler = scheduler("ddim", pipe.scheduler.config)
    return Workload(pipe, conditions_of(pipe), len(SEEDS), {"guidance_scale": 1.5})


def nearness(workload: Workload, plan: CachePlan, *, of_steps: int) -> float:
    """The mean PSNR to the uncached samples of so many steps, by `cached` and `sample` alone."""
    pipe, size = workload.pipe, len(SEEDS)
    uncached = sample(pipe, SEEDS, batch_size=size, num_inference_steps=of_steps, **OPTIONS)
    with cached(pipe, plan):
        found = sample(pipe, SEEDS, batch_size=size, num_inference_steps=plan.num_steps, **OPTIONS)
    return float(np.mean(psnr_each(found, uncached)))


def require_nearer(workload: Workload, start: CachePlan, most: int, *, of_steps: int = STEPS) -> CachePlan:
    target = None if of_steps == STEPS else Sampling(None, of_steps)
    found = descended_on_images(workload, Sampling(None, start.num_steps), start, SEEDS, most, target=target)
    before, after = (nearness(workload, plan, of_steps=of_steps) for plan in (start, found))
    assert (found.num_steps, found.num_full, found.branch) == (start.num_steps, start.num_full, start.branch)
    assert found.full_steps[0] == 0
    assert after > before
    return found


@pytest.mark.parametrize(("branch", "most"), [(-1, 8), (0, 5)])
def test_images_come_nearer_for_the_same_cost(workload, branch, most):
    """The search begins with crowded full steps; other steps are better for any samples."""
    require_nearer(workload, CachePlan(STEPS, (0, 1, 2), branch, order=0), most)


def test_a_plan_over_fewer_steps_comes_nearer_to_the_images_of_all_steps(workload):
    require_nearer(workload, CachePlan(5, (0, 1, 2), -1, order=0), 6, of_steps=8)


def test_a_search_that_goes_the_wrong_way_is_caught(workload, monkeypatch):
    """The broken variant keeps moves by which the error grows."""
    monkeypatch.setattr(descent, "psnr_each", lambda *images: [-each for each in psnr_each(*images)])
    with pytest.raises(AssertionError):
        require_nearer(workload, uniform(STEPS, 3, -1, 1), 6)


def test_uncached_images_are_sampled_once_and_plans_at_most_so_often(workload, monkeypatch):
    """A second search finds the same plan."""
    ran, own = [], workload.under
    search = (workload, Sampling(None, STEPS), uniform(STEPS, 3, -1), SEEDS, 5)
    expected = descended_on_images(*search)
    monkeypatch.setattr(workload, "under", lambda sampling: ran.append(sampling.plan) or own(sampling))
    assert descended_on_images(*search) == expected
    assert ran.count(None) == 1
    assert len(ran) == 6
    assert len(set(ran)) == 6


def toward(target: CachePlan, asked: list[CachePlan]):
    """A made-up nearness that grows with each full step that comes nearer to the target's, and with its order."""

    def found(plan: CachePlan) -> np.ndarray:
        asked.append(plan)
        apart = sum(abs(a - b) for a, b in zip(plan.full_steps, target.full_steps, strict=True))
        return np.array([-apart - (plan.order != target.order)])

    return found


@pytest.mark.parametrize(
    "target",
    [
        CachePlan(20, (0, 3, 4, 12), -1, order=2),
        CachePlan(20, (0, 6, 13, 19), -1, order=0),
        CachePlan(20, (0, 1, 2, 3), -1, order="auto"),
    ],
)
def test_every_plan_of_the_same_cost_can_be_reached(target):
    asked: list[CachePlan] = []
    assert descended(uniform(20, 5, -1, 1), toward(target, asked), 1000) == target
    assert len(asked) == len(set(asked))
    assert asked[0] == uniform(20, 5, -1, 1)


@pytest.mark.parametrize("most", [1, 2, 7])
def test_no_more_plans_are_evaluated_than_allowed(most):
    asked: list[CachePlan] = []
    found = descended(uniform(20, 5, -1), toward(CachePlan(20, (0, 1, 2, 3), -1, 0), asked), most)
    assert len(asked) == most
    assert found in asked


def test_a_full_last_step_is_tried_for_the_whole_plan_at_once():
    asked: list[CachePlan] = []
    descended(uniform(20, 5, -1), toward(CachePlan(20, (0, 5, 10, 15), -1), asked), 1000)
    assert CachePlan(20, (0, 6, 13, 19), -1) in asked


def test_one_full_step_stays_and_other_orders_are_tried():
    """Nothing can be moved; order 2 counts as nearer here."""
    found = descended(CachePlan(6, (0,), -1, 1), lambda plan: np.array([float(plan.order == 2)]), 9)
    assert found == CachePlan(6, (0,), -1, 2)


@pytest.mark.parametrize(("gains", "is_kept"), [([2, 2, 1], True), ([9, -1, -1], False), ([0, 0, 0], False)])
def test_a_move_that_few_seeds_carry_is_not_kept(gains, is_kept):
    """The mean gains are 5/3, 7/3 and 0, and the standard errors 1/3, 10/3 and 0."""
    start = CachePlan(6, (0,), -1, 1)
    found = descended(start, lambda plan: np.array(gains, float) * (plan.order == 2), 9)
    assert (found.order == 2) == is_kept


def test_a_mixed_plan_is_refused():
    with pytest.raises(DeepCacheError, match="all idle or all shallow"):
        descended(uniform(12, 4, 0, shallow_every=2), lambda _: np.zeros(1), 9)
