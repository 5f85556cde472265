"""Idle steps: nothing of the U-Net runs, and its output is predicted.

The oracles are the uncached U-Net, bit for bit, a loop that predicts by hand, and exact polynomials.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from deepcache import CachePlan, UnsupportedUNetError, cached, uniform
from deepcache.cache.prediction import Node, Polynomial, coordinate
from deepcache.costs.explain import explain
from deepcache.costs.macs import cost
from deepcache.plan import EVERY
from deepcache.unets.diffusers.forward import full_forward, shallow_forward
from deepcache.unets.diffusers.views import Cut
from tests.pipelines import workload
from tests.problems import (
    SCHEDULERS,
    TIMESTEPS,
    at,
    denoise,
    inputs,
    latents,
    loop,
    pipeline,
    shared,
    small_unet,
    twice,
    unet,
)
from tests.transformer_pipelines import WATCHED, whole

FAMILIES = (  # one of each class of U-Nets, or two that take other inputs; no block is looked at here
    *("ddpm", "ddpm-classes", "no-mid", "sdxl", "timestep-cond", "kandinsky-2.2"),
    *("animatediff", "modelscope", "svd", "i2vgen-xl"),
)
MIXED = uniform(9, 4, 1, 0, shallow_every=2)  # 0 is full, 1 idle, 2 shallow, 3 idle, 4 full, ...
HAND = pytest.mark.filterwarnings("ignore::FutureWarning")  # diffusers deprecates some forms of an input


class Curve(nn.Module):
    """A network whose output is a polynomial of the timestep; it lists the timesteps at which it ran."""

    def __init__(self, coefficients: Sequence[Tensor]) -> None:
        super().__init__()
        self.coefficients, self.ran = tuple(coefficients), list[float]()

    def value(self, t: float) -> Tensor:
        return torch.stack([each * (t / 1000) ** k for k, each in enumerate(self.coefficients)]).sum(dim=0)

    def forward(self, sample: Tensor, timestep: Tensor, *, return_dict: bool = True) -> Any:
        self.ran.append(float(timestep))
        value = self.value(float(timestep)).expand(len(sample), -1, -1, -1).clone()
        return {"sample": value} if return_dict else (value,)


def curve(degree: int) -> Curve:
    return Curve(torch.randn(degree + 1, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))


def ran_in(model: nn.Module) -> list[int]:
    """Return a list that gets one entry for each call of a network: how many of its layers ran."""
    ran: list[int] = []
    model.register_forward_pre_hook(lambda *_: ran.append(0))

    def count(*_: Any) -> None:
        ran[-1] += 1

    for module in model.modules():
        if not list(module.children()):  # a branch may cut through the others, which have no hooks then
            module.register_forward_pre_hook(count)
    return ran


@pytest.mark.parametrize(
    ("scheduler", "order"), [*zip(("ddim", "plms", "heun", "dpm-solver++"), EVERY, strict=True)], ids=str
)
def test_interval_one_is_uncached(scheduler: str, order: Any) -> None:
    expected = latents(pipeline(SCHEDULERS[scheduler]()))
    with cached(pipe := pipeline(SCHEDULERS[scheduler]()), interval=1, branch=-1, order=order):
        assert torch.equal(latents(pipe), expected)


def test_interval_two_is_not_uncached() -> None:
    """Test of the test."""
    expected = latents(pipeline())
    with cached(pipe := pipeline(), interval=2, branch=-1):
        assert not torch.equal(latents(pipe), expected)


@HAND
@pytest.mark.parametrize("name", FAMILIES)
def test_idle_step_on_the_inputs_of_the_full_step_gives_its_output_and_runs_no_module(name: str) -> None:
    model, (args, kwargs) = unet(name), inputs(name)
    expected = shared(name)(*deepcopy(args), **deepcopy(kwargs))[0]
    ran, found = ran_in(model), []
    with cached(model, interval=2, branch=-1) as cache:
        for t in twice(model, args, kwargs):
            given, more = at(t, *deepcopy((args, kwargs)))
            found.append(model(*given, **more)[0])
    assert [torch.equal(each, expected) for each in found] == [True, True]
    assert ran[0] > 0
    assert ran[1] == 0
    assert cache.generations[0].full_steps == (0,)


@pytest.mark.parametrize("order", EVERY)
@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_prediction_at_the_newest_full_step_is_its_output(guidance: float, order: Any) -> None:
    """After one, two and three full steps, with the halves of guidance in one batch: so at every reach."""
    model, half = unet("ddpm"), inputs("ddpm", batch=1)[0][0]
    timesteps = torch.tensor([900, 900, 700, 700, 400, 400, 300, 300])
    owner = owner_of(model, timesteps, guidance)
    sample = torch.cat([half, half])
    with cached(owner, CachePlan(8, (0, 2, 4, 6), -1, order)):
        found = [model(sample + i // 2, t).sample for i, t in enumerate(timesteps)]
    assert all(torch.equal(full, idle) for full, idle in zip(found[::2], found[1::2], strict=True))
    assert not torch.equal(found[0], found[2])


def owner_of(model: Any, timesteps: Tensor, guidance: float | None) -> Any:
    """Return what `cached` takes for a pipeline under way; without guidance it does not tell."""
    known = {} if guidance is None else {"guidance_scale": guidance, "do_classifier_free_guidance": guidance > 1}
    return SimpleNamespace(unet=model, scheduler=SimpleNamespace(timesteps=timesteps), **known)


@pytest.mark.parametrize(
    ("name", "interval"), [("text2img", 2), ("panorama", 2), ("panorama", 3), ("SDXL text2img", 3), ("DDPM", 2)]
)
def test_pipelines_run_their_unet_on_full_steps_alone(name: str, interval: int) -> None:
    work = workload(name)
    ran: list[int] = []
    with (
        work.unet.register_forward_pre_hook(lambda *_: ran.append(0)),
        work.unet.conv_out.register_forward_pre_hook(lambda *_: ran.__setitem__(-1, 1)),
        cached(work.owner, interval=interval, branch=-1) as cache,
    ):
        work.run(6)
    assert ran == work.pattern(6 * work.calls, interval)
    assert cache.generations[0].num_calls == 6 * work.calls


@pytest.mark.parametrize("order", [0, 1, 2])
def test_polynomials_of_the_orders_degree_are_reproduced(order: int) -> None:
    """An exact law on uneven steps, from the order's last full step on; those of one degree more are not."""
    timesteps, full_steps = torch.tensor([990, 950, 800, 700, 450, 400, 90, 50]), (0, 1, 3, 5)
    first = full_steps[order]
    for degree in (order, order + 1):
        model = curve(degree)
        with cached(owner_of(model, timesteps, 1.0), CachePlan(8, full_steps, -1, order)):
            found = [model(torch.zeros(1, 2, 4, 4), t)["sample"][0] for t in timesteps]
        assert model.ran == [float(timesteps[step]) for step in full_steps]
        errors = [(one - model.value(float(t))).abs().max() for one, t in zip(found, timesteps, strict=True)]
        if degree == order:
            assert max(errors[first:]) < 1e-12  # float64, and weights of some 10
        else:
            assert max(errors[first:]) > 1e-3


def test_auto_takes_the_order_that_the_reach_allows() -> None:
    """20 steps at interval 2 are a reach of 0.1: order 2. Guidance of 3 makes it 0.3: order 1."""
    timesteps = torch.linspace(990, 40, 20).round()
    for guidance, degree in ((1.0, 2), (3.0, 1)):
        exact = []
        for each in (1, 2):
            model = curve(each)
            sample = torch.zeros(1 if guidance == 1 else 2, 2, 4, 4)  # with guidance, both halves
            with cached(owner_of(model, timesteps, guidance), interval=2, branch=-1):
                found = [model(sample, t)["sample"][0] for t in timesteps]
            exact.append(torch.allclose(found[-1], model.value(float(timesteps[-1])), rtol=0, atol=1e-12))
        assert exact == [True, degree == 2]


def test_auto_does_not_trust_a_strength_of_guidance_that_another_call_left() -> None:
    """Two halves under a strength of 1, and another schedule than the owner's, are what they are on a bare U-Net."""
    timesteps, sample = torch.linspace(990, 40, 20).round(), torch.zeros(2, 2, 4, 4)

    def outputs(owner: Any, model: Any, given: Tensor) -> Tensor:
        with cached(owner, uniform(20, 2, -1)):
            return torch.stack([model(sample, t)["sample"] for t in given])

    bare = outputs(model := curve(2), model, timesteps.clone())
    for guidance, given in ((1.0, timesteps), (1.0, timesteps.clone()), (3.0, timesteps.clone())):
        found = outputs(owner_of(model := curve(2), timesteps, guidance), model, given)
        assert torch.equal(found, bare)
    found = outputs(owner_of(model := curve(2), timesteps, 1.5), model, timesteps)
    assert not torch.equal(found, bare)


def test_auto_does_not_trust_a_strength_of_one_where_a_step_makes_two_calls() -> None:
    """A loop of the user's own with guidance in two calls, after a call of the pipeline without guidance."""
    timesteps, sample = torch.linspace(990, 40, 20).round(), torch.zeros(1, 2, 4, 4)

    def outputs(guidance: float | None) -> Tensor:
        owner = owner_of(model := curve(2), timesteps, guidance)
        with cached(owner, interval=2, branch=-1):
            return torch.stack([model(sample, t)["sample"] for t in timesteps for _ in range(2)])

    assert torch.equal(outputs(1.0), outputs(None))


def test_auto_sees_guidance_that_changes_within_a_generation() -> None:
    """At 1.5 the reach allows order 2, which reproduces a parabola; a callback then makes it far too strong."""
    timesteps, sample = torch.linspace(990, 40, 20).round(), torch.zeros(2, 2, 4, 4)
    for change in (None, 8):
        owner = owner_of(model := curve(2), timesteps, 1.5)
        with cached(owner, interval=2, branch=-1):
            for step, t in enumerate(timesteps):
                if step == change:
                    owner.guidance_scale = 100.0
                found = model(sample, t)["sample"][0]
        is_exact = torch.allclose(found, model.value(float(timesteps[-1])), rtol=0, atol=1e-12)
        assert is_exact == (change is None)


class Mixed(nn.Module):
    """Returns whole numbers and flags beside its sample, and a loss without dimensions."""

    def forward(self, x: Tensor, t: Any) -> dict[str, Tensor]:
        t = t["time"] if isinstance(t, dict) else t[0] if isinstance(t, list) else t
        value = x * float(t) / 1000
        return {"sample": value, "ids": torch.full((2,), int(t)), "mask": value > 0.6, "loss": value.mean()}


@pytest.mark.parametrize("order", EVERY)
def test_outputs_that_are_no_floats_are_reused(order: Any) -> None:
    model, x = Mixed(), torch.ones(2, 3, dtype=torch.float64)
    with cached(model, uniform(4, 2, -1, order)):
        found = [model(x, t) for t in (900.0, 800.0, 500.0, 400.0)]
    assert [each["ids"].tolist() for each in found] == [[900, 900], [900, 900], [500, 500], [500, 500]]
    assert [bool(each["mask"].all()) for each in found] == [True, True, False, False]
    assert explain(model, uniform(4, 2, -1, order), call=((x.float(), 900.0), {})).feature == ((3,), ())
    assert found[-1]["loss"] == pytest.approx(float(found[-1]["sample"].mean()))


@pytest.mark.parametrize("order", EVERY)
@pytest.mark.parametrize("wrapped", [lambda t: {"time": t}, lambda t: [t]], ids=["dict", "list"])
def test_a_second_argument_that_is_no_timestep_leaves_the_step_as_the_coordinate(wrapped: Any, order: Any) -> None:
    model, x = Mixed(), torch.ones(2, 3)
    with cached(model, interval=2, branch=-1, order=order, num_steps=6) as cache:
        for t in (900.0, 800.0, 700.0, 600.0, 500.0, 400.0):
            found = model(x, wrapped(t))
    assert cache.generations[-1].full_steps == (0, 2, 4)
    if order in (1, 2, "auto"):  # linear in the step as in the timestep
        torch.testing.assert_close(found["sample"], 0.4 * x)


@pytest.mark.parametrize("order", EVERY)
def test_complex_outputs_are_predicted(order: Any) -> None:
    class Spectrum(nn.Module):
        def forward(self, x: Tensor, t: float) -> Tensor:
            return torch.complex(x * t, x * (1000 - t)) / 1000

    model, x = Spectrum(), torch.ones(2, 3)
    with cached(model, uniform(6, 2, -1, order)):
        found = [model(x, t) for t in (900.0, 800.0, 700.0, 600.0, 500.0, 400.0)]
    expected = model(x, 500.0 if order == 0 else 400.0)
    torch.testing.assert_close(found[-1], expected)


def test_a_policy_with_a_transformer_and_a_noise_scheduler_is_cached() -> None:
    scheduler = SimpleNamespace(timesteps=torch.tensor([900, 600, 300]), step_index=None, begin_index=None)
    policy = SimpleNamespace(transformer=Mixed(), noise_scheduler=scheduler)
    with cached(policy, interval=2, branch=-1) as cache:
        for t in scheduler.timesteps:
            policy.transformer(torch.ones(2, 3), t)
    assert cache.generations[-1].full_steps == (0, 2)


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize(
    ("full_steps", "idle_steps", "branch", "scheduler"),
    [
        ((0, 2, 3, 6), (), -1, "ddim"),
        ((0, 4, 8), (1, 3, 5, 7), 1, "plms"),
        ((0, 1, 2, 6), (4, 5, 7), 3, "dpm-solver++"),
        ((0,), (2, 3), 0, "plms"),
    ],
)
def test_cached_is_what_a_loop_by_hand_gives(
    full_steps: tuple[int, ...], idle_steps: tuple[int, ...], branch: int, scheduler: str, order: int
) -> None:
    """An exact law: outputs are predicted from full and shallow steps, features from full steps."""
    num_steps = len(_set(scheduler))
    plan = CachePlan(num_steps, full_steps, branch, order, idle_steps)
    pipe = SimpleNamespace(unet=unet("ddpm"), scheduler=SCHEDULERS[scheduler]())
    with cached(pipe, plan) as cache:
        found = denoise(pipe, 9, name="ddpm")
    assert torch.equal(found, _by_hand(plan, scheduler))
    assert cache.generations[0].full_steps == full_steps


def _set(scheduler: str) -> Tensor:
    made = SCHEDULERS[scheduler]()
    made.set_timesteps(9)
    return made.timesteps


def _by_hand(plan: CachePlan, scheduler: str) -> Tensor:
    model, steps = shared("ddpm"), iter(range(plan.num_steps))
    features: list[Node] = []
    outputs: list[Node] = []
    cut = Cut.of(model, max(plan.branch, 0))

    def predicted(nodes: list[Node], step: int, t: Tensor) -> Any:
        return Polynomial.through(nodes[: int(plan.order) + 1])(step, t)

    def forward(sample: Tensor, t: Tensor) -> Any:
        step = next(steps)
        if step not in plan.full_steps and (plan.branch == -1 or step in plan.idle_steps):
            return SimpleNamespace(sample=predicted(outputs, step, t)[0])
        if step in plan.full_steps:
            output, feature = full_forward(model, cut, sample, t)
            features.insert(0, Node(step, coordinate(t), feature))
        else:
            output = shallow_forward(model, cut, predicted(features, step, t), sample, t)
        outputs.insert(0, Node(step, coordinate(t), (output.sample,)))
        return output

    return denoise(SimpleNamespace(unet=forward, scheduler=SCHEDULERS[scheduler]()), 9, name="ddpm")


def test_steps_of_a_mixed_plan_run_as_much_as_the_plan_says() -> None:
    model = unet("ddpm")
    ran, timesteps = ran_in(model), torch.arange(900, 0, -100)
    with cached(model, MIXED):
        loop(model, timesteps)
    kinds = [ran.index(count) for count in ran]  # the first step that ran as much
    assert kinds == [0, 1, 2, 1, 0, 1, 2, 1, 0]
    assert ran[0] > ran[2] > ran[1] == 0


@pytest.mark.parametrize(
    "plan", [uniform(9, 3, -1, 1), uniform(9, 3, -1, 0), MIXED], ids=["order 1", "order 0", "mixed"]
)
def test_caller_who_writes_into_an_output_changes_no_later_one(plan: CachePlan) -> None:
    timesteps, sample = torch.arange(900, 0, -100), inputs("ddpm")[0][0]

    def outputs(write: Callable[[Tensor], Any]) -> list[Tensor]:
        found = []
        with cached(model := unet("ddpm"), plan):
            for t in timesteps:
                output = model(sample, t).sample
                found.append(output.clone())
                write(output)
        return found

    torch.testing.assert_close(outputs(Tensor.zero_), outputs(lambda _: None), rtol=0, atol=0)


def test_outputs_that_are_kept_themselves_would_be_written_into(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test of the test: without copies the law above fails."""
    monkeypatch.setattr(Tensor, "clone", lambda tensor: tensor)
    with pytest.raises(AssertionError):
        test_caller_who_writes_into_an_output_changes_no_later_one(uniform(9, 3, -1, 0))


def test_output_has_the_form_that_is_asked_for() -> None:
    model, (sample, _) = unet("ddpm"), inputs("ddpm")[0]
    with cached(model, interval=9, branch=-1) as cache:
        named = [model(sample, t) for t in TIMESTEPS[:2]]
        cache.reset()
        plain = [model(sample, t, return_dict=False) for t in TIMESTEPS[:2]]
    assert len({type(output) for output in named}) == 1
    assert {type(output) for output in plain} == {tuple}
    torch.testing.assert_close([output.sample for output in named], [output[0] for output in plain], rtol=0, atol=0)


def test_another_form_in_between_makes_a_step_full() -> None:
    model, (sample, _) = unet("ddpm"), inputs("ddpm")[0]
    expected, forms = shared("ddpm")(sample, TIMESTEPS[2]).sample, (True, True, False, False, True)
    with cached(model, interval=9, branch=-1) as cache:
        found = [model(sample, t, return_dict=form) for t, form in zip(TIMESTEPS, forms, strict=True)]
    assert cache.generations[0].full_steps == (0, 2, 4)
    assert [isinstance(output, tuple) for output in found] == [False, False, True, True, False]
    assert torch.equal(found[2][0], expected)


@pytest.mark.parametrize("plan", [uniform(9, 4, -1), uniform(9, 2, -1, 2, last_step_full=True), MIXED], ids=repr)
def test_generation_costs_what_its_plan_does_also_when_pickled(plan: CachePlan) -> None:
    model, (sample, _) = unet("ddpm"), inputs("ddpm")[0]
    with cached(model, plan) as cache:
        loop(model, torch.arange(900, 0, -100))
    (generation,) = cache.generations
    whole = cost(model, sample, 0)
    steps = [whole.full()] * plan.num_full + [whole.shallow(plan.branch)] * plan.num_shallow + [0] * plan.num_idle
    assert len(steps) == 9
    assert generation.macs == pickle.loads(pickle.dumps(generation)).macs == round(sum(steps) / 9)
    assert (generation.num_steps, generation.num_calls, generation.full_steps) == (9, 9, plan.full_steps)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_as_many_outputs_are_kept_as_the_order_and_one(order: int) -> None:
    """Mixed plans keep as many features, too."""
    model, (sample, _) = unet("ddpm"), inputs("ddpm")[0]
    feature = full_forward(model, Cut.of(model, 1), sample, 0)[1][0]
    for plan, each in (
        (uniform(9, 2, -1, order), 0),
        (CachePlan(9, (0, 2, 4, 6, 8), 1, order, (3, 5)), feature.nbytes),
    ):
        with cached(model, plan, num_steps=9) as cache:
            loop(model, torch.arange(900, 0, -100))
        assert cache.generations[0].feature_bytes == (order + 1) * (sample.nbytes + each)


@pytest.mark.parametrize(("dtype", "guidance"), [(torch.float16, None), (torch.bfloat16, 7.5)], ids=str)
def test_half_precision_stays_and_interval_one_is_uncached(dtype: torch.dtype, guidance: float | None) -> None:
    half = inputs("ddpm", batch=1)[0][0].to(dtype)
    sample, model = torch.cat([half, half]), unet("ddpm").to(dtype)
    timesteps = torch.arange(900, 0, -100)
    expected = [model(sample, t).sample for t in timesteps]
    for interval in (1, 2):
        with cached(owner_of(model, timesteps, guidance), interval=interval, branch=-1):
            found = [model(sample, t).sample for t in timesteps]
        assert {output.dtype for output in found} == {dtype}
        assert all(output.isfinite().all() for output in found)
        equal = [torch.equal(one, other) for one, other in zip(found, expected, strict=True)]
        assert equal == [step % interval == 0 for step in range(9)]


def test_threads_have_outputs_of_their_own_and_inner_blocks_answer() -> None:
    """Three threads take turns in one block; the oracle is each alone. tests/cache/test_state.py interleaves more."""
    model, barrier = unet("ddpm"), Barrier(3)

    def denoised(seed: int, wait: Callable[[], Any]) -> Tensor:
        sample = inputs("ddpm", seed=seed)[0][0]
        for t in torch.arange(900, 0, -100):
            wait()
            sample = sample - 0.3 * model(sample, t).sample
        return sample

    with cached(model, interval=3, branch=-1):
        expected = [denoised(seed, lambda: None) for seed in range(3)]
        with ThreadPoolExecutor(3) as threads:
            found = list(threads.map(lambda seed: denoised(seed, barrier.wait), range(3)))
        with cached(model, interval=1, branch=-1):
            inner = denoised(0, lambda: None)
        after = denoised(0, lambda: None)
    torch.testing.assert_close([*found, after], [*expected, expected[0]], rtol=0, atol=0)
    assert torch.equal(inner, denoised(0, lambda: None))
    assert not torch.equal(inner, after)


class Guided(nn.Module):
    """A network whose halves of guidance differ, sample by sample, and along the timesteps."""

    def forward(self, sample: Tensor, timestep: Tensor, context: Tensor) -> tuple[Tensor]:
        t = timestep / 1000
        return (sample * (0.3 + t * t) + context * (1 + t) * torch.sin(3 * t + context),)


def guided(
    calls: int, plan: CachePlan, guidance: float, *, model: Any = None, context: Any = None, is_told: bool = True
) -> Tensor:
    """Denoise with guidance, of which the cache is told or not, by one call of both halves in a step, or by two."""
    model = model or Guided()
    timesteps = torch.linspace(950, 50, plan.num_steps).round()
    generator = torch.Generator().manual_seed(5)
    sample = torch.randn(2, 4, 8, 8, generator=generator)
    if context is None:
        context = torch.randn(2, 2, 4, 8, 8, generator=generator)
    with cached(owner_of(model, timesteps, guidance if is_told else None), plan):
        for t in timesteps:
            if calls == 1:
                none, text = model(torch.cat([sample, sample]), t, context.flatten(0, 1))[0].chunk(2)
            else:
                none, text = (model(sample, t, half)[0] for half in context)
            sample = sample - 0.1 * (none + guidance * (text - none))
    return sample


@pytest.mark.parametrize("order", EVERY)
@pytest.mark.parametrize("is_told", [True, False])
@pytest.mark.parametrize("guidance", [1.5, 7.5])  # a reach of 0.225, and one beyond all limits
def test_guidance_in_two_calls_is_guidance_in_one(guidance: float, is_told: bool, order: Any) -> None:  # noqa: FBT001
    """Guidance of which nobody tells is beyond the reach."""
    one, two = (guided(calls, uniform(20, 3, -1, order), guidance, is_told=is_told) for calls in (1, 2))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


def test_guidance_in_two_calls_is_guidance_in_one_in_a_mixed_plan() -> None:
    """Outputs of shallow steps are known to both calls as well."""
    model, generator = unet("no-attention"), torch.Generator().manual_seed(2)
    context = torch.randn(2, 2, 5, 8, generator=generator)
    plan = uniform(20, 4, 1, shallow_every=2)
    one, two = (guided(calls, plan, 7.5, model=model, context=context) for calls in (1, 2))
    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("order", [0, 1])
def test_beyond_the_reach_auto_is_neither_reuse_nor_extrapolation(order: int) -> None:
    """Test of the tests above: some of what was predicted had been proved, and some had not."""
    assert not torch.allclose(guided(1, uniform(20, 3, -1), 7.5), guided(1, uniform(20, 3, -1, order), 7.5), atol=1e-3)


def test_calls_that_are_not_paired_differ_from_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test of the test."""
    plan = uniform(20, 3, -1)
    expected = guided(1, plan, 7.5)
    monkeypatch.setattr("deepcache.cache.generation.ActiveGeneration.pair", lambda _: None)
    assert not torch.allclose(guided(2, plan, 7.5), expected, atol=1e-3)


def test_half_that_comes_later_is_not_paired_with_what_it_has_not_seen() -> None:
    """Guidance that begins after some steps: the second call has fewer full steps behind it."""
    timesteps, model = torch.linspace(950, 50, 20).round(), Guided()
    sample, *context = torch.randn(3, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with cached(owner_of(model, timesteps, 7.5), interval=3, branch=-1) as cache:
        for step, t in enumerate(timesteps):
            for half in context[: 1 + (step >= 7)]:
                (output,) = model(sample, t, half)
                assert output.isfinite().all()
    assert cache.generations[0].num_calls == 7 + 2 * 13


@HAND
@pytest.mark.parametrize("branch", [-1, 0])
@pytest.mark.parametrize("name", WATCHED)
def test_unets_of_other_classes_are_cached_idle_or_cut_where_a_call_shows(name: str, branch: int) -> None:
    owner, run = whole(name)
    expected = run()
    with cached(owner, interval=1, branch=branch):
        assert torch.equal(run(), expected)
    with cached(owner, interval=2, branch=branch) as cache:
        found = run()
        assert not torch.equal(found, expected)
        assert ("at branch 0" in str(cache.explain(5))) == (branch == 0)
    assert cache.generations[0].full_steps == (0, 2, 4)
    assert cache.generations[0].macs > 0
    if name == "ControlNet-XS":  # nothing tells its inputs before a call
        with pytest.raises(UnsupportedUNetError, match="generate once before") as caught:
            explain(owner, CachePlan(5, (0, 2), branch))
        assert "\n" not in str(caught.value)


def test_idle_branch_costs_nothing_on_the_page() -> None:
    page = str(explain(pipeline(), CachePlan(8, (0, 4), -1)))
    assert "idle step" in page
    assert "no module runs" in page
    assert "shallow step " not in page.split("\n\n", 2)[-1]


def test_attention_readers_stay_refused_at_branch_minus_one() -> None:
    """They read, on every step, what an idle step does not compute."""
    with pytest.raises(UnsupportedUNetError, match="reads the attention"):
        cached(workload("self-attention guidance").pipe, interval=2, branch=-1)


def test_compiled_full_steps_are_the_eager_ones_and_idle_steps_run_no_graph() -> None:
    graphs: list[int] = []

    def backend(graph: Any, _: Any) -> Any:
        def run(*args: Any) -> Any:
            graphs.append(1)
            return graph.forward(*args)

        return run

    with cached(model := small_unet(), interval=2, branch=-1):
        expected = loop(model)
    with cached(model := small_unet(), interval=2, branch=-1, compile={"backend": backend, "fullgraph": True}):
        assert torch.equal(loop(model), expected)
    assert len(graphs) == 3


def test_compile_default_at_branch_minus_one() -> None:
    """The compiler may fuse, so the oracle is the eager cache up to rounding."""
    model, sample = Guided(), torch.ones(2, 4, 8, 8)
    timesteps, context = torch.linspace(950, 50, 20).round(), torch.randn(2, 4, 8, 8)
    found = []
    for how in (None, "default"):
        with cached(owner_of(model, timesteps, 1.0), interval=3, branch=-1, compile=how):
            found.append([model(sample, t, context)[0] for t in timesteps])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_scheduler_of_a_bare_unet_is_not_needed() -> None:
    """Numbers as timesteps, with a plan."""
    model, (sample, _) = unet("ddpm"), inputs("ddpm")[0]
    pipe = SimpleNamespace(unet=unet("ddpm"), scheduler=DDIMScheduler())
    pipe.scheduler.set_timesteps(6)
    with cached(pipe, uniform(6, 2, -1, 1)):
        expected = [pipe.unet(sample, t).sample for t in pipe.scheduler.timesteps]
    with cached(model, uniform(6, 2, -1, 1)):
        found = [model(sample, t).sample for t in pipe.scheduler.timesteps.tolist()]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
