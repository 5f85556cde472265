"""The place of a timestep tells the step. The oracle is an exact law, or the same generation with other timesteps."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler, PNDMScheduler
from torch import Tensor

from deepcache import DeepCacheError, DeepCacheWarning, cached, uniform
from deepcache.cache.timeline import Place, goes_on, lifetime, matched, num_after, num_left, place
from deepcache.unets.diffusers.forward import full_forward, shallow_forward
from deepcache.unets.diffusers.views import Cut
from tests.problems import SCHEDULERS, denoise, inputs, loop, small_unet, unet

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
}
VIEWS_OF_COPIES: dict[str, Callable[[Tensor, int], Any]] = {
    "expanded": lambda timesteps, i: torch.tensor([int(timesteps[i])]).expand(2),
    "one more dimension of a copy": lambda timesteps, i: timesteps[i].clone()[None],
}
ALL = {**ELEMENTS, **COPIES, **VIEWS_OF_COPIES}


@pytest.mark.parametrize("element", ELEMENTS.values(), ids=ELEMENTS)
def test_element_lies_where_it_is(element: Callable[[Tensor, int], Any]) -> None:
    memory = TIMESTEPS.untyped_storage()._cdata
    assert [place(element(TIMESTEPS, i), None) for i in range(5)] == [Place(memory, i) for i in range(5)]


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
def test_copy_has_no_place(copy: Callable[[Tensor, int], Any]) -> None:
    assert [place(copy(TIMESTEPS, i), TIMESTEPS) for i in range(5)] == [None] * 5


def test_only_timestep_has_a_place() -> None:
    """The tensor of timesteps has one element, as in a generation of one step."""
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
    assert num_left(place(timesteps[2], timesteps), timesteps) == 3


@pytest.mark.parametrize("scheduler", [HeunDiscreteScheduler, PNDMScheduler])
def test_repeated_timesteps_have_places_of_their_own(scheduler: Any) -> None:
    timesteps = scheduler()
    timesteps.set_timesteps(6)
    timesteps = timesteps.timesteps
    assert len(timesteps.unique()) < len(timesteps)
    assert len({place(t, None) for t in timesteps}) == len(timesteps)


@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
def test_new_timesteps_lie_elsewhere(scheduler: Any) -> None:
    """This holds while a place of the old timesteps is remembered, whether or not the scheduler keeps its timesteps."""
    pipe, memories, remembered = scheduler(), set(), []
    for _ in range(5):
        pipe.set_timesteps(5)
        memories.add(place(pipe.timesteps[0], None).memory)
        remembered.append(lifetime(pipe.timesteps[0]))
    assert len(memories) == 5
    assert [alive.expired() for alive in remembered] == [True] * 4 + [False]


def test_steps_left_are_counted_from_the_place() -> None:
    """Image-to-image begins so, from a slice of the scheduler's timesteps."""
    for begin in range(5):
        rest = TIMESTEPS[begin:]
        assert num_left(place(rest[0], TIMESTEPS), TIMESTEPS) == 5 - begin
        assert num_after(rest[0]) == 5 - begin
    assert num_left(place(TIMESTEPS[2], TIMESTEPS), TIMESTEPS[1:4]) == 2
    assert num_left(place(TIMESTEPS[2], None), TIMESTEPS.clone()) is None


@pytest.mark.parametrize("copy", [*COPIES.values(), *VIEWS_OF_COPIES.values()], ids=[*COPIES, *VIEWS_OF_COPIES])
def test_copy_stands_for_the_element_that_has_its_value(copy: Callable[[Tensor, int], Any]) -> None:
    for i in range(5):
        element = place(TIMESTEPS[i], None)
        assert matched(copy(TIMESTEPS, i), TIMESTEPS, None, is_complete=True) == element
        assert matched(copy(TIMESTEPS + 7, i), TIMESTEPS, None, is_complete=True) is None


@pytest.mark.parametrize("cast", [int, torch.Tensor.half, torch.Tensor.bfloat16, torch.Tensor.double], ids=str)
def test_copy_that_lost_digits_in_a_cast_stands_for_its_element(cast: Callable[[Tensor], Any]) -> None:
    scheduler = EulerDiscreteScheduler(timestep_spacing="linspace")
    scheduler.set_timesteps(12)
    timesteps = scheduler.timesteps
    assert (timesteps != timesteps.round()).any()
    found = [matched(cast(t), timesteps, None, is_complete=True) for t in timesteps]
    assert found == [place(t, None) for t in timesteps]


def test_of_equal_timesteps_the_one_that_goes_on_is_meant() -> None:
    timesteps = torch.tensor([900, 600, 600, 300])
    places, last = [], None
    for t in timesteps.tolist():
        places.append(matched(t, timesteps, last, is_complete=True))
        last = places[-1].offset
    assert [found.offset for found in places] == [0, 1, 2, 3]
    assert matched(600, timesteps, 1, is_complete=False).offset == 1


@pytest.mark.parametrize(
    ("found", "last", "direction", "expected"),
    [
        ((5,), (9,), 0, -1),
        ((5,), (9,), -1, -1),
        ((9,), (5,), 0, 1),
        ((9,), (5,), -1, 0),
        ((5,), (9,), 1, 0),
        ((5,), (5,), 0, 0),
        ((1, 5), (3, 5), -1, -1),
        ((1, 6), (3, 5), -1, 0),
        ((1,), (3, 5), -1, -1),
    ],
)
def test_values_go_on_in_one_direction(found: Any, last: Any, direction: int, expected: int) -> None:
    assert goes_on(found, last, direction) == expected


@pytest.mark.parametrize("pass_on", [*ELEMENTS.values(), *COPIES.values()], ids=[*ELEMENTS, *COPIES])
def test_generation_is_the_same_however_its_timesteps_are_passed(pass_on: Callable[[Tensor, int], Any]) -> None:
    """The steps are told by places or counted; the second generation begins because its timesteps are new."""
    pipe, (sample, _) = SimpleNamespace(unet=small_unet(), scheduler=DDIMScheduler()), inputs("ddpm")[0]

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


@pytest.mark.parametrize("is_bare", [True, False], ids=["bare U-Net", "pipeline"])
@pytest.mark.parametrize("view", VIEWS_OF_COPIES)
def test_views_of_copies_are_generations_of_one_step_each_and_warned_of(view: str, is_bare: bool) -> None:  # noqa: FBT001
    """Each timestep lies in a memory of its own, like the only step of a generation: right, but nothing is cached."""
    model, (sample, _) = small_unet(), inputs("ddpm")[0]
    owner = model if is_bare else SimpleNamespace(unet=model, scheduler=SimpleNamespace(timesteps=TIMESTEPS))
    expected = [model(sample, t).sample for t in TIMESTEPS]
    with (
        cached(owner, interval=3) as cache,
        pytest.warns(DeepCacheWarning, match="pass elements of one tensor") as told,
    ):
        found = [model(sample, VIEWS_OF_COPIES[view](TIMESTEPS, i)).sample for i in range(5)]
    assert len(told) == 1
    assert all(map(torch.equal, found, expected))
    assert [generation.full_steps for generation in cache.generations] == [(0,)] * 5


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_stopped_loop_begins_anew_on_the_same_timesteps(num_steps: int) -> None:
    """An earlier place tells that a generation begins; after a first step alone nothing tells it: reset is needed."""
    model = small_unet()
    with cached(model, interval=3):
        expected = loop(model, TIMESTEPS, seed=1)
    with cached(model, interval=3) as cache:
        loop(model, TIMESTEPS[:num_steps])
        if num_steps == 1:
            with pytest.raises(DeepCacheError, match=r"at one timestep.*cache\.reset\(\)"):
                loop(model, TIMESTEPS, seed=1)
            cache.reset()
        assert torch.equal(loop(model, TIMESTEPS, seed=1), expected)
    assert [g.num_steps for g in cache.generations] == [num_steps, 5]


def test_timestep_that_is_repeated_to_measure_it_is_refused_and_keeps_one_feature() -> None:
    """A loop to warm up does this; with a reset before each call, each call is a generation."""
    model, (sample, _) = small_unet(), inputs("ddpm")[0]
    with cached(model, interval=3) as cache:
        model(sample, TIMESTEPS[0])
        with pytest.raises(DeepCacheError, match="expected at most 1 U-Net calls at one timestep"):
            model(sample, TIMESTEPS[0])
        for _ in range(3):
            cache.reset()
            model(sample, TIMESTEPS[0])
    assert len({generation.feature_bytes for generation in cache.generations}) == 1


def test_calls_of_a_pipelines_step_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepcache.cache.generation.MOST_CALLS", 4)
    pipe, (sample, _) = SimpleNamespace(unet=small_unet(), scheduler=DDIMScheduler()), inputs("ddpm")[0]
    with cached(pipe, interval=3):
        for _ in range(4):
            pipe.unet(sample, pipe.scheduler.timesteps[0])
        with pytest.raises(DeepCacheError, match="expected at most 4 U-Net calls at one timestep"):
            pipe.unet(sample, pipe.scheduler.timesteps[0])


def test_step_of_fewer_calls_than_the_one_before_is_refused() -> None:
    """After a call to warm up, a pipeline's loop looks like a generation whose first step has two calls."""
    pipe, (sample, _) = SimpleNamespace(unet=small_unet(), scheduler=DDIMScheduler()), inputs("ddpm")[0]
    pipe.scheduler.set_timesteps(5)
    with cached(pipe, interval=3) as cache:
        pipe.unet(sample, pipe.scheduler.timesteps[0])
        for t in pipe.scheduler.timesteps[:2]:
            pipe.unet(sample, t)
        for _ in range(2):  # a call that was refused changes nothing, so that it is refused again
            with pytest.raises(DeepCacheError, match=r"expected 2 U-Net calls in step 1.*got 1.*to warm up"):
                pipe.unet(sample, pipe.scheduler.timesteps[2])
        cache.reset()
        for t in pipe.scheduler.timesteps:
            pipe.unet(sample, t)


@pytest.mark.parametrize("pass_on", ALL.values(), ids=ALL)
def test_generations_of_a_number_of_steps_that_is_told_follow_each_other(
    pass_on: Callable[[Tensor, int], Any],
) -> None:
    """There is neither a reset nor a new tensor of timesteps between the generations, of a bare U-Net or a pipeline."""
    model, (sample, _) = small_unet(), inputs("ddpm")[0]

    def generation(seed: int, pass_on: Callable[[Tensor, int], Any]) -> Tensor:
        image = sample * seed
        for i in range(5):
            image = image - 0.3 * model(image, pass_on(TIMESTEPS, i)).sample
        return image

    expected = []
    for seed in (1, 2):
        with cached(model, interval=3):
            expected.append(generation(seed, ELEMENTS["index"]))
    for owner in (model, SimpleNamespace(unet=model, scheduler=DDIMScheduler())):
        with cached(owner, interval=3, num_steps=5) as cache:
            found = [generation(seed, pass_on) for seed in (1, 2)]
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        assert [g.full_steps for g in cache.generations] == [(0, 3)] * 2


@pytest.mark.parametrize("told", [{"interval": 3, "num_steps": 5}, {"plan": uniform(5, 3)}], ids=["told", "planned"])
@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
def test_second_generation_of_numbers_without_a_reset_is_refused(
    copy: Callable[[Tensor, int], Any], told: dict[str, Any]
) -> None:
    """The generation before was stopped."""
    model, (sample, _) = small_unet(), inputs("ddpm")[0]
    with cached(model, **told) as cache:
        for i in range(3):
            model(sample, copy(TIMESTEPS, i))
        for again in (0, 1):  # a call that was refused changes nothing: the next of the same loop is refused, too
            refused = pytest.raises(DeepCacheError, match=r"goes on from 300.*got [69]00.*cache\.reset\(\)")
            with refused as caught:
                model(sample, copy(TIMESTEPS, again))
        assert "\n" not in str(caught.value)
        cache.reset()
        model(sample, copy(TIMESTEPS, 0))
    assert [g.num_steps for g in cache.generations] == [3, 1]


def test_copy_on_a_device_has_to_be_told() -> None:
    model, (sample, _) = small_unet(), inputs("ddpm")[0]
    with (
        cached(model, interval=3),
        pytest.raises(DeepCacheError, match=r"copy on a device that is not its next.*say num_steps"),
    ):
        model(sample, torch.empty((), device="meta"))


def test_number_that_is_none_of_the_pipelines_timesteps_is_refused() -> None:
    """The timesteps are another pipeline's, or a sampler computes them from the scheduler's."""
    pipe, (sample, _) = SimpleNamespace(unet=small_unet(), scheduler=DDIMScheduler()), inputs("ddpm")[0]
    pipe.scheduler.set_timesteps(5)
    with (
        cached(pipe, interval=3),
        pytest.raises(
            DeepCacheError, match="element of the tensor of the pipeline's timesteps, got a number or a copy"
        ),
    ):
        pipe.unet(sample, 999)


@pytest.mark.parametrize("told", [{"num_steps": 0}, {"num_steps": 2.5}, {"calls_per_step": 0}, {"calls_per_step": "2"}])
def test_what_no_generation_can_have_is_refused(told: dict[str, Any]) -> None:
    (name,) = told
    with (
        pytest.raises(DeepCacheError, match=f"expected {name} to be a whole number"),
        cached(unet("ddpm"), interval=2, **told),
    ):
        pass
    with (
        pytest.raises(DeepCacheError, match="plan is for 5 steps, and num_steps is 4"),
        cached(unet("ddpm"), uniform(5, 2), num_steps=4),
    ):
        pass


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_generations_of_one_step_beside_a_pipelines_own_are_right_or_refused(mode: Any) -> None:
    """Another pipeline on the same U-Net has them; in inference mode torch does not tell views."""
    pipe, (sample, _) = SimpleNamespace(unet=small_unet(), scheduler=DDIMScheduler()), inputs("ddpm")[0]
    samples = [sample * scale for scale in (1, 2, 3)]
    alone = [pipe.unet(each, 999).sample for each in samples]
    with cached(pipe, interval=3) as cache, mode():
        denoise(pipe, 5, name="ddpm")
        refused, beside = None, []
        for each in samples:
            previews = torch.tensor([999])
            try:
                beside.append(pipe.unet(each, previews[0]).sample)
            except DeepCacheError as error:
                refused = error
                break
    assert all(map(torch.equal, alone, beside))
    assert (refused is None) == (mode is torch.no_grad)
    assert [g.num_steps for g in cache.generations] == [5] + [1] * len(beside)


class _Skipping:
    """The pipeline makes two U-Net calls for three timesteps."""

    def __init__(self) -> None:
        self.unet, self.scheduler = small_unet(), DDIMScheduler()

    def run(self) -> Tensor:
        (sample, _) = inputs("ddpm")[0]
        self.scheduler.set_timesteps(9)
        for i, t in enumerate(self.scheduler.timesteps):
            if i % 3 < 2:
                sample = sample - 0.3 * self.unet(sample, t).sample
        return sample


def test_pipeline_whose_calls_are_not_its_timesteps_is_refused_where_their_number_counts() -> None:
    """Nothing is refused where the user states the number; else each leap may begin another image, and is full."""
    how: dict[str, Any]
    for how in ({"interval": 2, "last_step_full": True}, {"plan": uniform(9, 2)}):
        with (
            cached(pipe := _Skipping(), **how),
            pytest.raises(DeepCacheError, match="1 timesteps were passed over; say num_steps"),
        ):
            pipe.run()
    for how in (
        {"interval": 2, "num_steps": 6},
        {"interval": 2, "num_steps": 6, "last_step_full": True},
        {"plan": uniform(6, 2), "num_steps": 6},
    ):
        with cached(pipe := _Skipping(), **how) as cache:
            pipe.run()
        (generation,) = cache.generations
        assert generation.num_steps == 6
        assert generation.full_steps == ((0, 2, 4, 5) if how.get("last_step_full") else (0, 2, 4))
    with cached(pipe := _Skipping(), interval=2) as cache, pytest.warns(DeepCacheWarning, match="passed over"):
        pipe.run()
    assert [(each.num_steps, each.full_steps) for each in cache.generations] == [(2, (0,))] * 3


@pytest.mark.parametrize("is_bare", [False, True])
def test_an_image_that_begins_beyond_an_interrupted_one_takes_nothing_from_it(
    is_bare: bool,  # noqa: FBT001 (a parameter of a test)
) -> None:
    """An image stops after two steps, and another one begins at a later timestep of the same schedule."""
    unet, scheduler = small_unet(), DDIMScheduler()
    scheduler.set_timesteps(10)
    (sample, _) = inputs("ddpm")[0]

    def run(x: Tensor, timesteps: Tensor) -> Tensor:
        with torch.no_grad():
            for t in timesteps:
                x = x - 0.3 * unet(x, t).sample
        return x

    with cached(unet if is_bare else SimpleNamespace(unet=unet, scheduler=scheduler), interval=5) as cache:
        alone = run(-sample, scheduler.timesteps[4:])
        cache.reset()
        run(sample, scheduler.timesteps[:2])
        assert torch.equal(run(-sample, scheduler.timesteps[4:]), alone)
        cache.reset()
        run(sample, scheduler.timesteps[:1])
        run(-sample, scheduler.timesteps[4:])
    assert cache.generations[-1].full_steps == (0, 1, 5)  # after one step nobody knows, and the next one is full


def test_a_schedule_of_every_second_timestep_is_cached() -> None:
    """Its first leap may be another image's, so that one more step is full; the others are cached as planned."""
    unet, timesteps = small_unet(), torch.arange(990, -10, -100)
    (sample, _) = inputs("ddpm")[0]
    with cached(SimpleNamespace(unet=unet, scheduler=SimpleNamespace(timesteps=timesteps)), interval=2) as cache:
        for t in timesteps[::2]:
            unet(sample, t)
    assert cache.generations[-1].full_steps == (0, 1, 2, 4)


@pytest.mark.parametrize("how", [{"interval": 3}, {"plan": uniform(10, 3)}], ids=["interval", "plan"])
@pytest.mark.parametrize("kind", ["a row for each step", "rounded places"])
def test_timesteps_that_lie_unevenly_or_are_rows_are_steps_of_one_generation(kind: str, how: dict[str, Any]) -> None:
    """Rows of a tensor (T, B), and elements whose places were rounded, as denoising loops of others have them."""
    unet, (sample, _) = small_unet(), inputs("ddpm")[0]
    every = torch.arange(999, -1, -1)
    given = every[:10, None].expand(10, len(sample)).contiguous() if kind == "a row for each step" else every
    places = range(10) if kind == "a row for each step" else torch.linspace(0, 995, 10).round().int().tolist()
    with cached(unet, **how) as cache:
        for number in places:
            unet(sample, given[number])
    expected = (0, 3, 6, 9) if kind == "a row for each step" or "plan" in how else (0, 1, 3, 6, 9)
    assert [each.full_steps for each in cache.generations] == [expected]


def test_pipelines_on_one_unet_have_generations_of_their_own() -> None:
    """The pipelines run one after the other in the block of the first."""
    pipes = [SimpleNamespace(unet=small_unet(), scheduler=SCHEDULERS[name]()) for name in ("ddim", "heun", "plms")]
    expected = []
    for seed, pipe in enumerate(pipes):
        with cached(pipe, interval=3, order=1):
            expected.append(denoise(pipe, 4, name="ddpm", seed=seed))
        pipe.unet = pipes[0].unet
    with cached(pipes[0], interval=3, order=1) as cache:  # "auto" would ask the first one's scheduler for its steps
        found = [denoise(pipe, 4, name="ddpm", seed=seed) for seed, pipe in enumerate(pipes)]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert [g.full_steps for g in cache.generations] == [(0, 3), (0, 3, 6), (0, 3)]


@pytest.mark.parametrize("is_told", [True, False], ids=["bare U-Net, told", "pipeline"])
@pytest.mark.parametrize("num_calls", [2, 3])
def test_calls_apart_at_one_timestep_are_one_step_with_a_feature_each(num_calls: int, is_told: bool) -> None:  # noqa: FBT001
    """The calls are conditional and unconditional; the oracle is the kernel by hand with a feature for each."""
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
    owner = SimpleNamespace(unet=model, scheduler=SimpleNamespace(timesteps=TIMESTEPS))
    with cached(
        model if is_told else owner, interval=3, order=0, calls_per_step=num_calls if is_told else None
    ) as cache:
        for t in TIMESTEPS:
            image = image - sum(model(image, t, c).sample for c in contexts)
    assert torch.equal(image, expected)
    (generation,) = cache.generations
    assert (generation.num_steps, generation.num_calls, generation.full_steps) == (5, 5 * num_calls, (0, 3))
    assert generation.feature_bytes == num_calls * kept[0][0].numel() * torch.float32.itemsize
