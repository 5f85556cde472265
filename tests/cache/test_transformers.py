"""Pipelines with a transformer: branch -1 is their only branch.

The oracles are the uncached pipeline, bit for bit, and the same pipeline around a transformer whose outputs are
predicted by hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from typing import Any

import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

from deepcache import CachePlan, DeepCacheError, UnsupportedUNetError, cached
from deepcache.cache.prediction import Node, Polynomial
from deepcache.cache.timeline import counted_place
from deepcache.costs.explain import explain
from deepcache.costs.macs import EVERYTHING, cost
from tests.transformer_pipelines import NAMES, Work, text, work

NUM_STEPS = 6
UNCOUNTED = ("Lumina2",)  # its forward asks its mask for values, which the meta device does not have
each_pipeline = pytest.mark.parametrize("name", NAMES)


@contextmanager
def by_hand(made: Work, full_steps: tuple[int, ...], order: int) -> Iterator[list[Any]]:
    """Inside the block, predict a transformer's outputs from those of the full steps; yield its calls' arguments."""
    network, nodes, calls = made.pipe.transformer, [[] for _ in range(made.calls)], list[Any]()

    def forward(*args: Any, **kwargs: Any) -> Any:
        step, turn = divmod(len(calls), made.calls)
        calls.append((args, kwargs))
        is_plain = kwargs.get("return_dict") is False
        at = made.pipe.scheduler.timesteps[step]
        if step not in full_steps:
            (sample,) = Polynomial.through(nodes[turn][: order + 1])(step, at)
            return (sample,) if is_plain else Transformer2DModelOutput(sample=sample)
        output = type(network).forward(network, *args, **kwargs)
        nodes[turn].insert(0, Node(step, float(at), (output[0],)))
        return output

    network.forward = forward
    try:
        yield calls
    finally:
        del network.forward


@contextmanager
def running(network: nn.Module) -> Iterator[list[int]]:
    """Yield a list of how many modules inside a network ran, for each of its calls."""
    ran: list[int] = []

    def count(*_: Any) -> None:
        ran[-1] += 1

    handles = [network.register_forward_pre_hook(lambda *_: ran.append(0))]
    handles += [module.register_forward_pre_hook(count) for module in list(network.modules())[1:]]
    try:
        yield ran
    finally:
        for handle in handles:
            handle.remove()


@each_pipeline
def test_interval_one_is_uncached(name: str) -> None:
    expected = work(name).run(NUM_STEPS)
    made = work(name)
    with cached(made.pipe, interval=1, branch=-1) as cache:
        assert torch.equal(made.run(NUM_STEPS), expected)
    (generation,) = cache.generations
    assert (generation.num_steps, generation.num_calls) == (NUM_STEPS, NUM_STEPS * made.calls)
    assert expected.isfinite().all()


@pytest.mark.parametrize("order", [0, 1])
@each_pipeline
def test_outputs_of_idle_steps_are_predicted_from_those_of_full_steps(name: str, order: int) -> None:
    made, full_steps = work(name), (0, 2, 3)
    with by_hand(made, full_steps, order):
        expected = made.run(NUM_STEPS)
    uncached = work(name).run(NUM_STEPS)
    assert not torch.equal(expected, uncached)
    plan = CachePlan(NUM_STEPS, full_steps, -1, order)
    with (
        running(made.pipe.transformer) as ran,
        cached(made.pipe, plan) as cache,
    ):
        found = made.run(NUM_STEPS)
    assert torch.equal(found, expected)
    (generation,) = cache.generations
    assert generation.full_steps == full_steps
    assert generation.num_calls == NUM_STEPS * made.calls
    assert [count > 0 for count in ran] == [i // made.calls in full_steps for i in range(len(ran))]


@each_pipeline
def test_the_default_order_caches_and_costs_what_its_full_steps_do(name: str) -> None:
    """Several generations in one block, one of which is stopped; with and without guidance where there is any."""
    made = work(name)
    with by_hand(made, (0,), 0) as calls:
        made.run(NUM_STEPS)
    with cached(made.pipe, interval=3, branch=-1) as cache:
        images = [made.run(num_steps) for num_steps in (NUM_STEPS, 5, NUM_STEPS)]
    assert torch.equal(images[0], images[2])
    assert [generation.full_steps for generation in cache.generations] == [(0, 3)] * 3
    if name in UNCOUNTED:
        with pytest.raises(UnsupportedUNetError, match="does not run without data"):
            _ = cache.generations[0].macs
        return
    one = cost(made.pipe.transformer, *calls[0][0], **calls[0][1]).full()
    assert one > 0
    assert [generation.macs for generation in cache.generations] == [round(one * 2 / num) for num in (NUM_STEPS, 5, 6)]


@each_pipeline
def test_branches_above_minus_one_are_refused_by_name(name: str) -> None:
    made = work(name)
    kind = type(made.pipe.transformer).__name__
    for branch in (None, 0, 3):
        with pytest.raises(UnsupportedUNetError, match=f"got a {kind}; branch=-1 caches any network") as caught:
            cached(made.pipe, interval=2, branch=branch)
        assert "\n" not in str(caught.value)
    assert "forward" not in vars(made.pipe.transformer)


@each_pipeline
def test_a_page_explains_the_plan_after_a_generation_and_a_line_says_so_before(name: str) -> None:
    made = work(name)
    with cached(made.pipe, interval=3, branch=-1) as cache:
        with pytest.raises(UnsupportedUNetError, match=r"tells no inputs.*generate once before") as caught:
            cache.explain(NUM_STEPS)
        assert "\n" not in str(caught.value)
        made.run(NUM_STEPS)
        if name in UNCOUNTED:
            with pytest.raises(UnsupportedUNetError, match="does not run without data") as caught:
                cache.explain(NUM_STEPS)
            assert "\n" not in str(caught.value)
            return
        told = cache.explain(NUM_STEPS)
    page = str(told)
    assert max(map(len, page.splitlines())) <= 100
    assert type(made.pipe.transformer).__name__ in page.splitlines()[0]
    assert "MACs of one image" in page
    assert told.bound(whole=False) == NUM_STEPS / ceil(NUM_STEPS / 3)
    assert told.cost.outside.total(EVERYTHING) == told.full
    with pytest.raises(UnsupportedUNetError, match="branch=-1"):
        explain(made.pipe, 3, NUM_STEPS)


def test_attention_products_of_other_layers_than_unets_have_are_counted() -> None:
    """An exact law: Q K^T and A V of two heads of eight, for 16 places and 5 tokens, in one layer of both."""
    made = work("SD3")
    with by_hand(made, (0,), 0) as calls:
        made.run(2)
    (args, kwargs) = calls[0]
    assert cost(made.pipe.transformer, *args, **kwargs).outside.attention == 2 * (16 + 5) ** 2 * 16


def test_bare_transformer_needs_the_number_of_steps() -> None:
    made = work("FLUX")
    with cached(made.pipe, interval=2, branch=-1, order=1):
        expected = made.run(NUM_STEPS)
    with cached(made.pipe.transformer, interval=2, branch=-1, order=1, num_steps=NUM_STEPS) as cache:
        found = made.run(NUM_STEPS)
        assert "MACs of one image" in str(cache.explain(NUM_STEPS))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)  # a share of the timesteps as the coordinate
    with pytest.raises(DeepCacheError, match="say num_steps"), cached(made.pipe.transformer, interval=2, branch=-1):
        made.run(NUM_STEPS)


def test_pipeline_with_two_transformers_is_refused() -> None:
    made = work("SD3")
    made.pipe.transformer_2 = made.pipe.transformer
    with pytest.raises(UnsupportedUNetError, match="transformer and transformer_2, which share the steps"):
        cached(made.pipe, interval=2, branch=-1)


def test_compiled_full_steps_are_the_eager_ones() -> None:
    made = work("PixArt")
    with cached(made.pipe, interval=2, branch=-1):
        expected = made.run(NUM_STEPS)
    with cached(made.pipe, interval=2, branch=-1, compile={"backend": "eager"}):
        assert torch.equal(made.run(NUM_STEPS), expected)


@pytest.mark.parametrize("scale", [1.0, 0.001])
def test_copies_have_the_place_at_which_the_scheduler_stands(scale: float) -> None:
    scheduler = work("SD3").pipe.scheduler
    scheduler.set_timesteps(4)
    sample = torch.zeros(1, 1, 1, 1)
    offsets = []
    for t in scheduler.timesteps:
        for copy in (t.clone() * scale, t.expand(2) * scale):
            found = counted_place(copy, scheduler)
            assert found is not None
            offsets.append(found.offset)
        assert counted_place(t * 0.5, scheduler) is None  # another value
        sample = scheduler.step(sample, t, sample).prev_sample
    assert offsets == [0, 0, 1, 1, 2, 2, 3, 3]
    assert counted_place(t * scale, scheduler) is None  # there are no more steps


def test_a_batch_of_images_is_the_images_one_by_one() -> None:
    """Order "auto" decides for each sample, beyond the reach; the batch changes the rounding alone."""
    made = work("SD3")
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))

    def run(given: Tensor) -> Tensor:
        prompts = {key: value.repeat_interleave(len(given), dim=0) for key, value in text(pooled=True).items()}
        with cached(made.pipe, interval=2, branch=-1):
            return made.run(10, latents=given, guidance_scale=4.0, **prompts)

    torch.testing.assert_close(run(latents), torch.cat([run(each[None]) for each in latents]), rtol=1e-3, atol=1e-3)
