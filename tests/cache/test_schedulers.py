"""Laws of every scheduler that Stable Diffusion accepts. The oracle is the uncached pipeline, or an exact count."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deepcache import cached
from deepcache.cache.timeline import Place
from deepcache.unets.pipelines import adds_noise
from tests.cells import EXACT, NOTHING, of_option, verdict
from tests.pipelines import classes, counted, options, scheduler, takes, workload
from tests.support import documented

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),  # of diffusers
    pytest.mark.filterwarnings("ignore:Should have t[ab][<>]=t[01] but got"),  # of torchsde, under a rounded time
]
ACCEPTED = sorted(kind.__name__ for kind in workload("text2img").pipe.scheduler.compatibles)
BESIDE = [  # Stable Diffusion runs with these, too, but does not name them
    "DDIMParallelScheduler",
    "DDPMParallelScheduler",
    "EDMDPMSolverMultistepScheduler",
    "LCMScheduler",
    "SASolverScheduler",
    "TCDScheduler",
]
NAMES = sorted({*ACCEPTED, *BESIDE})


def test_every_accepted_scheduler_is_installed() -> None:
    """Test of the test: no test tries a scheduler whose requirements are missing."""
    assert set(NAMES) <= set(classes())
    assert len(ACCEPTED) >= 15


def test_every_scheduler_is_exact_with_every_option_that_it_takes() -> None:  # laws 3 and 5
    """docs/support.md says so; `test_support.py` compares that page with what each scheduler does."""
    plain, by_option = documented("Schedulers by pipeline"), documented("Schedulers by option")
    assert {name: plain[name]["text2img"] for name in NAMES} == dict.fromkeys(NAMES, EXACT)
    found = {(name, option): by_option[name][option] for name in NAMES for option in options(name)}
    assert found == {variant: EXACT if takes(*variant) else NOTHING for variant in found}
    assert len(found) >= 100


@pytest.mark.parametrize("name", NAMES)
def test_generation_has_a_step_for_each_timestep(name: str) -> None:
    work = workload("text2img", scheduler(name))
    with counted(work.pipe.unet) as ran, cached(work.pipe, interval=3) as cache:
        work.run(4)
    generation = cache.generations[-1]
    assert generation.num_steps == len(ran) == len(work.pipe.scheduler.timesteps)
    assert generation.full_steps == tuple(range(0, len(ran), 3))


def _stepped(name: str, option: str | None, seed: int) -> torch.Tensor:
    """Return where three steps of a scheduler lead, whose noise, if any, is drawn from a seed."""
    made, sample = scheduler(name, option), torch.ones(1, 3, 8, 8)
    if hasattr(made, "noise_sampler_seed"):
        made.noise_sampler_seed = seed
    made.set_timesteps(6)
    drawn = {"generator": torch.Generator().manual_seed(seed)}
    kwargs = drawn if "generator" in inspect.signature(made.step).parameters else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for t in made.timesteps[:3]:
            sample = made.step(made.scale_model_input(sample, t) / 2, t, sample, **kwargs).prev_sample
    return sample


@pytest.mark.parametrize("name", NAMES)
def test_the_default_reuses_where_the_solver_adds_noise_and_predicts_elsewhere(name: str) -> None:
    """The oracle is the scheduler: with noise, another seed leads elsewhere."""
    for option in [None, *({"SDE"} & {*options(name)})]:
        if not takes(name, option):
            continue
        is_noisy = not torch.equal(_stepped(name, option, 0), _stepped(name, option, 1))
        assert adds_noise(SimpleNamespace(scheduler=scheduler(name, option))) == is_noisy
    work = workload("text2img", scheduler(name))
    found = []
    for order in ("auto", 0):
        with cached(work.pipe, interval=2, order=order):
            found.append(work.run(10, guided=False))
    assert torch.equal(*found) == adds_noise(work.pipe)


@pytest.mark.parametrize("name", ["HeunDiscreteScheduler", "PNDMScheduler"])
def test_a_step_looked_up_by_its_timestep_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Test of the test: the older package looked steps up; under a scheduler that repeats timesteps it lost steps."""

    def looked_up(timestep: Any, timesteps: Any) -> Place:
        return Place(timesteps.untyped_storage()._cdata, int((timesteps == timestep).nonzero()[0]))

    monkeypatch.setattr("deepcache.cache.tracking.place", looked_up)
    assert verdict(workload("text2img"), (2, 3)) == EXACT
    with pytest.raises(AssertionError, match="the mid block ran"):
        verdict(workload("text2img", scheduler(name)), (2, 3))


def test_an_option_that_a_scheduler_does_not_know_is_none() -> None:
    assert of_option("DDIMScheduler", "Karras sigmas") == NOTHING


def test_a_scheduler_that_gives_no_finite_number_is_none() -> None:
    work = workload("text2img")
    assert verdict(work, latents=torch.full((1, 4, 8, 8), torch.nan)) == NOTHING
