"""Calibrations agree with a solver's own arithmetic, the U-Net's shallow steps, and a trial of all moves."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

import deepcache
from deepcache import CachePlan, DeepCacheError, cached, uniform
from deepcache.models import load
from deepcache.models.class_conditional import ClassConditionalPipeline
from deepcache.sampling.samples import sample
from deepcache.sampling.schedulers import scheduler
from deepcache.search.calibration import Calibration, calibrate
from deepcache.search.programming import descended
from deepcache.search.recorder import Recorder, Responses, Sketch, gains, listening
from deepcache.unets.diffusers.forward import full_forward, shallow_forward
from deepcache.unets.diffusers.views import Cut
from tests.problems import latents, pipeline, unet

STEPS = 6
GUIDANCE = inspect.signature(ClassConditionalPipeline.__call__).parameters["guidance_scale"].default


@pytest.fixture(scope="module")
def tiny():
    return pipeline(DDIMScheduler(clip_sample=False))


@pytest.fixture(scope="module")
def recorder(tiny) -> Recorder:
    return Recorder.of(tiny, lambda: latents(tiny, num_steps=STEPS), branch=1)


@pytest.fixture
def made_up() -> Calibration:
    rng = np.random.default_rng(4)
    vectors = tuple(rng.normal(size=(step, 3, 7)).astype(np.float32) for step in range(12))
    return Calibration(Responses(vectors, np.linspace(990, 0, 12), 0), rng.uniform(0.1, 1, (12, 3)))


def test_a_response_is_the_shallow_steps_own(tiny, recorder):
    """The response of step 3 to the feature of step 1, after guidance, is computed by hand."""
    calls = []
    handle = tiny.unet.register_forward_pre_hook(lambda _, a, k: calls.append((a, k)), with_kwargs=True)
    expected = latents(tiny, num_steps=STEPS)
    handle.remove()
    assert torch.equal(recorder.last, expected)
    cut = Cut.of(tiny.unet, 1)
    with torch.no_grad():
        (args1, kw1), (args3, kw3) = calls[1], calls[3]
        other = full_forward(tiny.unet, cut, *args1, **kw1)[1]
        output, own = full_forward(tiny.unet, cut, *args3, **kw3)
        nudged = tuple(torch.lerp(a, b, 0.25) for a, b in zip(own, other, strict=True))
        moved = (shallow_forward(tiny.unet, cut, nudged, *args3, **kw3)[0] - output[0]) / 0.25
    given = recorder.responses().vectors[3][1]
    first, second = moved.chunk(2)
    moved = first + GUIDANCE * (second - first)
    np.testing.assert_allclose(given, moved.flatten(1).numpy(), rtol=1e-3, atol=1e-4)


def test_the_last_steps_gain_is_the_solvers_coefficient(tiny, recorder):
    """DDIM: dx / d noise = sqrt(1 - a') - sqrt(a' (1 - a) / a), the same for every sample."""
    found = gains(tiny, lambda: latents(tiny, num_steps=STEPS), recorder)
    tiny.scheduler.set_timesteps(STEPS)
    last = int(tiny.scheduler.timesteps[-1])
    now, after = tiny.scheduler.alphas_cumprod[last], tiny.scheduler.final_alpha_cumprod
    expected = abs(float((1 - after) ** 0.5 - (after * (1 - now) / now) ** 0.5))
    assert found.shape == (STEPS, 2)
    np.testing.assert_allclose(found[-1], expected, rtol=1e-2)


def test_a_calibration_leaves_the_pipeline_as_it_was(tiny):
    before = latents(tiny)
    calibrate(tiny, branch=1, seeds=range(2), progress=False, num_inference_steps=4)
    assert torch.equal(latents(tiny), before)
    assert "step" not in vars(tiny.scheduler)
    assert "forward" not in vars(tiny.unet)


def test_repeated_timesteps_go_by_step_numbers():
    """PLMS repeats its second timestep: no weight is infinite."""
    pipe = pipeline(scheduler("plms", DDIMScheduler().config))
    found = calibrate(pipe, seeds=range(2), progress=False, num_inference_steps=6)
    for order in (0, 1, 2):
        plan = found.plan(4, order)
        assert plan.num_full == 4
        assert np.isfinite(found.error(plan))


@pytest.mark.parametrize("order", [0, 1, 2])
def test_no_move_of_a_step_makes_the_plan_better(made_up, order):
    plan = made_up.plan(5, order)
    least = made_up.error(plan)
    for step in plan.full_steps[1:]:
        for place in range(max(1, step - 3), min(12, step + 4)):
            if place not in plan.full_steps:
                moved = tuple(sorted({*plan.full_steps} - {step} | {place}))
                assert made_up.error(CachePlan(12, moved, 0, order)) >= least * (1 - 1e-5)


def test_of_all_orders_the_best_is_taken(made_up):
    best = made_up.plan(6)
    assert made_up.error(best) == min(made_up.error(made_up.plan(6, order)) for order in (0, 1, 2))
    assert made_up.error(best) <= made_up.error(uniform(12, 2, 0, best.order))


def test_an_error_is_the_sum_of_its_steps(made_up):
    """Order 0: the response to the last full step, times the gain, with its sign."""
    plan = CachePlan(12, (0, 4, 7), 0, 0)
    total = np.zeros((3, 7))
    for step in set(range(12)) - {0, 4, 7}:
        last = max(full for full in plan.full_steps if full < step)
        total += made_up.gains[step][:, None] * made_up.responses.vectors[step][last]
    expected = np.exp(np.log(np.linalg.norm(total, axis=1)).mean())
    assert made_up.error(plan) == pytest.approx(expected, rel=1e-4)
    assert made_up.error(uniform(12, 1)) < 1e-5


def test_descent_finds_what_falls():
    target = (0, 5, 9)
    found = descended((0, 1, 2), 12, lambda steps: sum(abs(a - b) for a, b in zip(steps, target, strict=True)) + 1.0)
    assert found == target


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda c: c.plan(13), "num_full to be at most 12, got 13"),
        (lambda c: c.plan(0), "num_full"),
        (lambda c: c.plan(3, 5), "order"),
        (lambda c: c.error(uniform(10, 2)), "a plan for 12 steps at branch 0, got one for 10"),
        (lambda c: c.error(uniform(12, 2, 1)), "at branch 0, got one for 12 at branch 1"),
    ],
)
def test_a_mistake_is_one_line(made_up, ask, told):
    with pytest.raises(DeepCacheError, match=told):
        ask(made_up)


def test_one_step_is_refused(tiny):
    with pytest.raises(DeepCacheError, match="at least 2 steps, saw 1"):
        calibrate(tiny, seeds=range(2), progress=False, num_inference_steps=1)


def test_a_sketch_keeps_norms():
    """Norms agree within five standard errors, sqrt(2 / 512) of the squared norm."""
    samples = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    found = np.linalg.norm(Sketch(samples)(samples), axis=1)
    np.testing.assert_allclose(found, samples.flatten(1).norm(dim=1).numpy(), rtol=0.5 * 5 * (2 / 512) ** 0.5)
    small = samples[:, :, :8, :8]
    np.testing.assert_array_equal(Sketch(small)(small), small.flatten(1).numpy())


def test_listening_hears_what_the_solver_is_given_and_makes():
    ddim, heard = DDIMScheduler(), []
    ddim.set_timesteps(3)
    noise, latent = torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    with listening(ddim, lambda given, made: heard.append((given, made))):
        made = ddim.step(noise, ddim.timesteps[0], latent).prev_sample
    assert heard[0][0] is noise
    assert torch.equal(heard[0][1], made)


def test_the_error_of_a_plan_is_that_of_its_samples():
    """mini-ldm, 8 steps, the seeds of the calibration: within a factor of three, as a first-order estimate is."""
    pipe = load("mini-ldm")
    pipe.scheduler = scheduler("ddim", pipe.scheduler.config)
    seeds, options = range(3), {"num_inference_steps": 8, "guidance_scale": 1.5, "progress": False}
    found = deepcache.calibrate(pipe, seeds=seeds, **options)
    uncached = sample(pipe, seeds, batch_size=3, output_type="latent", **options)
    for plan in (found.plan(4, 1), uniform(8, 2, 0, 1), uniform(8, 3, 0, 1)):
        with cached(pipe, plan):
            moved = sample(pipe, seeds, batch_size=3, output_type="latent", **options) - uncached
        measured = float(moved.flatten(1).norm(dim=1).log().mean().exp())
        assert 1 / 3 < found.error(plan) / measured < 3


def test_a_saved_plan_is_read_again(tmp_path, made_up):
    plan = made_up.plan(4)
    plan.save(tmp_path / "plan.json")
    assert deepcache.CachePlan.load(tmp_path / "plan.json") == plan
    with pytest.raises(DeepCacheError, match="cannot write"):
        plan.save(tmp_path / "none" / "plan.json")


def test_a_bare_unet_is_refused():
    with pytest.raises(DeepCacheError, match="pipeline"):
        calibrate(unet("ddpm"), seeds=range(2), progress=False)
