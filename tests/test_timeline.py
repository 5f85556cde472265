"""A step is told by where its timestep lies. The oracle is an exact law, or the same generation told in another way."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, HeunDiscreteScheduler, PNDMScheduler
from problems import SCHEDULERS, denoise, inputs, loop, unet
from torch import Tensor

from deepcache import DeepCacheWarning, cached, uniform
from deepcache.forward import full_forward, shallow_forward
from deepcache.timeline import Place, lifetime, num_after, num_left, place
from deepcache.views import Cut

TIMESTEPS = torch.tensor([900, 600, 300, 100, 50])
ELEMENTS: dict[str, Callable[[Tensor, int], Any]] = {
    "index": lambda timesteps, i: timesteps[i],
    "iteration": lambda timesteps, i: list(timesteps)[i],
    "slice": lambda timesteps, i: timesteps[i : i + 1],
    "one more dimension": lambda timesteps, i: timesteps[i][None],
    "one a sample": lambda timesteps, i: timesteps[i].expand(2),
    "the rest's first": lambda timesteps, i: timesteps[i:][0],
    "without gradient": lambda timesteps, i: timesteps[i].detach(),
}
COPIES: dict[str, Callable[[Tensor, int], Any]] = {
    "int": lambda timesteps, i: int(timesteps[i]),
    "float": lambda timesteps, i: float(timesteps[i]),
    "clone": lambda timesteps, i: timesteps[i].clone(),
    "another type": lambda timesteps, i: timesteps[i].float(),
    "repeated": lambda timesteps, i: timesteps[i].repeat(2),
    "full": lambda timesteps, i: torch.full((2,), int(timesteps[i])),
    "view of all": lambda timesteps, i: torch.full((2,), int(timesteps[i])).view(-1),
    "expanded": lambda timesteps, i: torch.tensor([int(timesteps[i])]).expand(2),
    "one more dimension of a copy": lambda timesteps, i: timesteps[i].clone()[None],
}


@pytest.mark.parametrize("element", ELEMENTS.values(), ids=ELEMENTS)
def test_element_lies_where_it_is(element: Callable[[Tensor, int], Any]) -> None:
    memory = TIMESTEPS.untyped_storage()._cdata
    assert [place(element(TIMESTEPS, i), None) for i in range(5)] == [Place(memory, i) for i in range(5)]


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
def test_copy_has_no_place(copy: Callable[[Tensor, int], Any]) -> None:
    assert [place(copy(TIMESTEPS, i), TIMESTEPS) for i in range(5)] == [None] * 5


def test_only_timestep_has_a_place() -> None:
    """A generation of one step."""
    timesteps = torch.tensor([999])
    assert place(timesteps[0], None) == Place(timesteps.untyped_storage()._cdata, 0)
    with torch.inference_mode():  # where torch does not tell what a view is
        timesteps = torch.tensor([999])
        assert place(timesteps[0], timesteps) == Place(timesteps.untyped_storage()._cdata, 0)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_places_are_the_same_in_every_mode(mode: Any) -> None:
    with mode():
        timesteps = TIMESTEPS.clone()
        assert [place(t, None).offset for t in timesteps] == list(range(5))


def test_nothing_is_read_from_the_timesteps() -> None:
    """Tensors without data: reading a value raises."""
    timesteps = torch.empty(5, device="meta")
    assert [place(t, timesteps).offset for t in timesteps] == list(range(5))
    assert num_left(place(timesteps[2], timesteps), timesteps, None) == 3


@pytest.mark.parametrize("scheduler", [HeunDiscreteScheduler, PNDMScheduler])
def test_repeated_timesteps_have_places_of_their_own(scheduler: Any) -> None:
    timesteps = scheduler()
    timesteps.set_timesteps(6)
    timesteps = timesteps.timesteps
    assert len(timesteps.unique()) < len(timesteps)
    assert len({place(t, None) for t in timesteps}) == len(timesteps)


@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
def test_new_timesteps_lie_elsewhere(scheduler: Any) -> None:
    """While a place of the old ones is remembered: of every scheduler, whether or not it keeps them."""
    pipe, memories, remembered = scheduler(), set(), []
    for _ in range(5):
        pipe.set_timesteps(5)
        memories.add(place(pipe.timesteps[0], None).memory)
        remembered.append(lifetime(pipe.timesteps[0]))
    assert len(memories) == 5
    assert [alive.expired() for alive in remembered] == [True] * 4 + [False]


def test_steps_left_are_counted_from_the_place() -> None:
    """As image-to-image begins: from a slice of the scheduler's timesteps."""
    for begin in range(5):
        rest = TIMESTEPS[begin:]
        assert num_left(place(rest[0], TIMESTEPS), TIMESTEPS, None) == 5 - begin
        assert num_after(rest[0]) == 5 - begin
    assert num_left(place(TIMESTEPS[2], TIMESTEPS), TIMESTEPS[1:4], None) == 2
    assert num_left(place(TIMESTEPS[2], None), TIMESTEPS.clone(), None) is None
    assert num_left(None, TIMESTEPS, begin_index=2) == 3
    assert num_left(None, None, None) is None


@pytest.mark.parametrize("pass_on", [*ELEMENTS.values(), *COPIES.values()], ids=[*ELEMENTS, *COPIES])
def test_generation_is_the_same_however_its_timesteps_are_passed(pass_on: Callable[[Tensor, int], Any]) -> None:
    """Told by place or counted; the second one begins anew because its timesteps are new."""
    pipe, (sample, _) = SimpleNamespace(unet=unet("ddpm"), scheduler=DDIMScheduler()), inputs("ddpm")[0]

    def generation(pass_on: Callable[[Tensor, int], Any]) -> Tensor:
        pipe.scheduler.set_timesteps(5)
        image = sample
        for i in range(5):
            image = image - 0.3 * pipe.unet(image, pass_on(pipe.scheduler.timesteps, i)).sample
        return image

    with cached(pipe, uniform(5, 3, order=1)):
        expected = generation(ELEMENTS["index"])
    with cached(pipe, uniform(5, 3, order=1)) as cache:
        assert torch.equal(generation(pass_on), expected)
        assert torch.equal(generation(pass_on), expected)
    assert [(g.num_steps, g.full_steps) for g in cache.generations] == [(5, (0, 3))] * 2


@pytest.mark.parametrize("view", ["expanded", "one more dimension of a copy"])
def test_a_bare_unet_with_views_of_copies_is_warned_of(view: str) -> None:
    """Each lies in a memory of its own, as the only step of a generation does: right, but nothing is cached."""
    model, (sample, _) = unet("ddpm"), inputs("ddpm")[0]
    expected = [model(sample, t).sample for t in TIMESTEPS]
    with (
        cached(model, interval=3) as cache,
        pytest.warns(DeepCacheWarning, match="pass elements of one tensor") as told,
    ):
        found = [model(sample, COPIES[view](TIMESTEPS, i)).sample for i in range(5)]
    assert len(told) == 1
    assert all(map(torch.equal, found, expected))
    assert [generation.full_steps for generation in cache.generations] == [(0,)] * 5


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_stopped_loop_begins_anew_on_the_same_timesteps_after_a_reset(num_steps: int) -> None:
    """The only case that needs one: stopped after its first step, whose place is also the new loop's first."""
    model = unet("ddpm")
    with cached(model, interval=3):
        expected = loop(model, TIMESTEPS, seed=1)
    with cached(model, interval=3) as cache:
        loop(model, TIMESTEPS[:num_steps])
        if num_steps == 1:
            cache.reset()
        assert torch.equal(loop(model, TIMESTEPS, seed=1), expected)
    assert [g.num_steps for g in cache.generations] == [num_steps, 5]


def test_pipelines_on_one_unet_have_generations_of_their_own() -> None:
    """One after the other under the block of the first."""
    pipes = [SimpleNamespace(unet=unet("ddpm"), scheduler=SCHEDULERS[name]()) for name in ("ddim", "heun", "plms")]
    expected = []
    for seed, pipe in enumerate(pipes):
        with cached(pipe, interval=3):
            expected.append(denoise(pipe, 4, name="ddpm", seed=seed))
        pipe.unet = pipes[0].unet
    with cached(pipes[0], interval=3) as cache:
        found = [denoise(pipe, 4, name="ddpm", seed=seed) for seed, pipe in enumerate(pipes)]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert [g.full_steps for g in cache.generations] == [(0, 3), (0, 3, 6), (0, 3)]


@pytest.mark.parametrize("num_calls", [2, 3])
def test_calls_apart_at_one_timestep_are_one_step_with_a_feature_each(num_calls: int) -> None:
    """Conditional and unconditional; the oracle is the kernel by hand with a feature each."""
    model, ((sample, _, context), _) = unet("sd-1.5"), inputs("sd-1.5")
    contexts = [context * scale for scale in (1, 0, -1)[:num_calls]]
    cut, kept = Cut.of(model, 0), {}

    def by_hand(i: int, step: int, *args: Any) -> Tensor:
        if step % 3:
            return shallow_forward(model, cut, kept[i], *args).sample
        output, kept[i] = full_forward(model, cut, *args)
        return output.sample

    expected = image = sample
    for step, t in enumerate(TIMESTEPS):
        expected = expected - sum(by_hand(i, step, expected, t, c) for i, c in enumerate(contexts))
    with cached(model, interval=3, order=0) as cache:
        for t in TIMESTEPS:
            image = image - sum(model(image, t, c).sample for c in contexts)
    assert torch.equal(image, expected)
    (generation,) = cache.generations
    assert (generation.num_steps, generation.num_calls, generation.full_steps) == (5, 5 * num_calls, (0, 3))
    assert generation.feature_bytes == num_calls * kept[0][0].numel() * torch.float32.itemsize
