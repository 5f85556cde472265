"""The benches share samples, and samples of a plan are what `cached` gives (exact laws)."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from bench.harness.timing import seconds
from bench.harness.up_blocks import similarities
from bench.harness.workload import Run, Workload
from deepcache import cached, models
from deepcache.errors import DeepCacheError
from deepcache.metrics.extractors import MiniExtractor
from deepcache.models.registry import Protocol
from deepcache.sampling.samples import sample
from deepcache.sampling.workload import Sampling

SEEDS = range(3)


@pytest.fixture(scope="module")
def workload() -> Workload:
    protocol = Protocol("ddim", 4, 3, 0, 1.5, batch_size=3, timed_batch_size=1)
    return Workload.of("mini-ldm", models.load("mini-ldm"), protocol, extractor=MiniExtractor.load())


def test_a_shorter_block_is_the_beginning_of_a_longer_one(workload):
    longer = workload.samples(workload.uncached(), SEEDS)
    shorter = workload.samples(workload.uncached(), range(2))
    assert shorter.images.data_ptr() == longer.images.data_ptr()
    assert len(shorter.features.pooled) == 2


def test_runs_that_differ_share_nothing(workload):
    uncached = workload.uncached()
    for other in (replace(uncached, scheduler="plms"), workload.every(2), workload.every(2, order=1)):
        assert not torch.equal(workload.samples(other, SEEDS).images, workload.samples(uncached, SEEDS).images)


def test_a_run_with_a_plan_is_what_cached_gives(workload):
    run = workload.every(2, branch=1)
    found = workload.samples(run, SEEDS)
    with workload.under(Sampling(run.scheduler, 4)), cached(workload.pipe, run.plan):
        expected = sample(workload.pipe, SEEDS, batch_size=3, num_inference_steps=4, guidance_scale=1.5)
    assert torch.equal(found.images, expected)


def test_zeroed_features_change_the_images_and_only_within_their_run(workload):
    run = workload.every(2)
    kept, _ = workload.images(run, SEEDS)
    zeroed, _ = workload.images(replace(run, zeroed=True), SEEDS)
    again, _ = workload.images(run, SEEDS)
    assert not torch.equal(kept, zeroed)
    assert torch.equal(kept, again)


def test_fewer_steps_cost_what_the_plan_costs(workload):
    uncached = Run("ddim", 100)
    cached_run = workload.every(5, num_steps=100)
    fewer = workload.fewer(uncached, cached_run)
    share = float(workload.cost.mean(cached_run.plan) / workload.cost.full())
    assert fewer.num_steps == round(100 * share)
    assert fewer.plan is None


@pytest.mark.parametrize("interval", [2, 3, 5])
def test_idle_steps_cost_what_the_shallow_steps_cost_down_to_a_full_step(workload, interval):
    shallow = workload.every(interval, num_steps=50)
    idle = workload.idle(shallow)
    step = workload.cost.full(workload.convention)
    saved = 50 * (workload.cost.mean(shallow.plan, workload.convention) - Fraction(step * idle.plan.num_full, 50))
    assert 0 <= saved < step
    assert idle.plan.num_shallow == 0
    gaps = np.diff((*idle.plan.full_steps, 50))
    assert max(gaps) - min(gaps) <= 1
    assert replace(idle, plan=None) == replace(shallow, plan=None)


def test_another_strength_of_guidance_shares_no_samples(workload):
    """Oracle: the pipeline, called with that guidance."""
    run = workload.uncached()
    weak, strong = (each.samples(run, SEEDS).images for each in (workload, workload.guided(4.0)))
    with workload.under(run):
        expected = sample(workload.pipe, SEEDS, batch_size=3, num_inference_steps=4, guidance_scale=4.0)
    assert torch.equal(strong, expected)
    assert not torch.equal(strong, weak)


def test_a_plan_covers_the_calls_and_not_the_steps(workload):
    """Heun calls the U-Net twice a step but the last."""
    assert workload.every(2, scheduler="heun").plan.num_steps == workload.num_calls(Run("heun", 4)) == 7


@pytest.fixture
def small_memory(monkeypatch) -> None:
    """The memory suffices for one sample at a time."""

    def limited(*args: Any, batch_size: int, **options: Any) -> torch.Tensor:
        if batch_size > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return sample(*args, batch_size=batch_size, **options)

    monkeypatch.setattr("deepcache.sampling.workload.sample", limited)


@pytest.mark.usefixtures("small_memory")
def test_a_batch_is_halved_where_its_size_is_not_given(workload, capsys):
    run = workload.every(2)
    images, cache = workload.images(run, SEEDS)
    assert "going on with batches of 1" in capsys.readouterr().err
    assert torch.equal(images, workload.images(run, SEEDS, batch_size=1)[0])
    assert len(cache.generations) == len(SEEDS)  # none of the batch that did not fit
    with pytest.raises(DeepCacheError, match="not enough memory for 3 samples together; take --batch-size auto"):
        replace(workload, is_halved=False).images(run, SEEDS)


def test_a_batch_size_counts_where_time_is_measured(workload):
    timed = replace(workload.protocol, timed_batch_size=8, num_samples=100)
    assert replace(workload, protocol=timed, batch_size=4).timed_images == 4
    assert replace(workload, protocol=timed, batch_size=50).timed_images == 8


@pytest.mark.usefixtures("small_memory")
def test_time_that_the_memory_does_not_do_for_is_one_line(workload):
    timed = replace(workload, protocol=replace(workload.protocol, timed_batch_size=2))
    with pytest.raises(DeepCacheError, match="not enough memory to time 2 samples together") as caught:
        seconds(timed, timed.uncached())
    assert "\n" not in str(caught.value)


def test_features_of_one_seed_at_a_time_are_as_alike_as_those_of_all(workload, monkeypatch):
    """Figure 2 of the paper's models, whose features do not fit the memory together; up to rounding."""
    together, shown = similarities(workload, SEEDS)
    monkeypatch.setattr(Workload, "is_mini", False)
    apart, first = similarities(workload, SEEDS)
    np.testing.assert_allclose(apart, together, atol=1e-5)
    torch.testing.assert_close(first, shown, rtol=1e-4, atol=1e-4)
