"""A first look compares ways of one cost (exact laws of cost, images equal bit for bit)."""

from __future__ import annotations

import pytest
import torch

from deepcache import DeepCacheError, Interval, uniform
from deepcache.costs.explain import explain
from deepcache.metrics.fidelity import PSNR_AT_MOST_DB
from deepcache.sampling.conditions import conditions_of
from deepcache.sampling.workload import Sampling, Workload, image_size_of
from deepcache.search.candidates import space_of
from deepcache.search.looks import Look, Way, advice, best, looks, ways
from tests.problems import pipeline

SAMPLING, SEEDS = Sampling("ddim", 12), range(2)


@pytest.fixture(scope="module")
def workload() -> Workload:
    pipe = pipeline()
    return Workload(pipe, conditions_of(pipe), 2, {"guidance_scale": 1.5})


def test_no_plan_costs_more_than_reuse_and_fewer_steps_are_as_many_as_cost_no_more(workload):
    uncached, reuse, default, idle, fewer = ways(workload, SAMPLING, 3, 0)
    full = uncached.macs // 12
    assert reuse.macs == default.macs < uncached.macs
    assert idle.macs == full * idle.sampling.plan.num_full <= reuse.macs
    assert fewer.macs == full * fewer.sampling.num_steps <= reuse.macs < full * (fewer.sampling.num_steps + 1)
    assert [way.sampling.plan for way in (uncached, reuse, default, fewer)] == [
        None,
        uniform(12, 3, 0, 0),
        uniform(12, 3),
        None,
    ]
    assert fewer.name == f"{fewer.sampling.num_steps} steps"


def test_images_are_those_of_the_plan_and_the_uncached_way_is_at_no_distance(workload):
    found = list(looks(workload, ways(workload, SAMPLING, 3, 0), SEEDS, None, progress=False))
    assert found[0].psnr_db == [PSNR_AT_MOST_DB] * 2
    assert found[0].share == 1
    assert all(look.perceptual is None and look.latency_s > 0 for look in found)
    with workload.under(found[1].way.sampling):
        again = workload.sample(SEEDS, num_inference_steps=12, progress=False)
    torch.testing.assert_close(found[1].images, again, rtol=0, atol=0)


@pytest.mark.parametrize(("interval", "branch"), [(1, 0), (3, 99)])
def test_what_cannot_be_compared_is_refused(workload, interval, branch):
    with pytest.raises(DeepCacheError, match="expected"):
        ways(workload, SAMPLING, interval, branch)


def look(name: str, psnr_db: float, macs: int = 50) -> Look:
    way = Way(name, "", SAMPLING, macs)
    return Look(way, macs / 100, macs / 100, [psnr_db] * 3, None, torch.zeros(3, 3, 4, 4))


def test_the_advice_names_the_nearest_way_and_the_cheaper_of_two_that_are_as_near():
    uncached, reuse, fewer = look("uncached", 80, 100), look("reuse", 41), look("6 steps", 38)
    default, idle = look("default", 45), look("idle steps", 45, 40)
    found = [uncached, reuse, default, idle, fewer]
    assert best(found) is idle
    assert advice(found).startswith("Take the plan \u201cidle steps\u201d: it gives a PSNR of 45.0 dB")
    assert "40% of the U-Net's MACs, 2.50 times as fast here; 6 steps give 38.0 dB, 2.00 times as fast." in advice(
        found
    )


def test_the_advice_says_where_fewer_steps_are_nearer_and_where_nothing_is_near():
    found = [look("uncached", 80, 100), look("reuse", 21), look("6 steps", 28)]
    assert advice(found).startswith("Take fewer steps: 6 steps give a PSNR of 28.0 dB")
    assert advice(found).endswith("try a smaller --interval.")


def test_the_space_counts_images_of_the_size_that_is_asked_for():
    pipe = pipeline()
    own = {"height": 128, "width": 128}
    space = space_of(Workload(pipe, conditions_of(pipe), 1, own), 6, branches=(0,), orders=(0,), solvers=None)
    assert space.full == explain(pipe, Interval(1), 6, height=128, width=128).full
    assert space.full > explain(pipe, Interval(1), 6).full


def test_one_side_alone_is_completed_by_the_pipelines_own():
    pipe = pipeline()
    height, width = image_size_of(pipe)
    own = {"height": 2 * height, "width": None}
    space = space_of(Workload(pipe, conditions_of(pipe), 1, own), 6, branches=(0,), orders=(0,), solvers=None)
    assert space.full == explain(pipe, Interval(1), 6, height=2 * height, width=width).full
