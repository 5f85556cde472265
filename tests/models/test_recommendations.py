"""Every plan that is shipped with the embedded models fits its model, solver and steps (an exact law)."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from deepcache import DeepCacheError, models, uniform
from deepcache.costs.macs import EVERYTHING, Cost
from deepcache.models.architectures import architecture
from deepcache.models.embedded import PLANS, recommended
from deepcache.models.registry import EMBEDDED, MODELS
from deepcache.sampling.schedulers import num_calls, scheduler

NAMES = sorted(path.stem for path in PLANS.glob("*.json"))


@cache
def known(model: str) -> tuple[Any, Cost]:
    """The configuration of a model's scheduler, and the cost of its steps."""
    return models.load(model).scheduler.config, architecture(model).cost()


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_fits_its_steps_and_costs_no_more_than_reuse_at_three(name: str) -> None:
    model = next(each for each in EMBEDDED if name.startswith(f"{each}-"))
    rest, _, guidance = name.removeprefix(f"{model}-").partition("-guidance-")
    solver, steps = rest.rsplit("-", 1)
    plan = recommended(model, solver, int(steps), float(guidance) if guidance else None)
    config, cost = known(model)
    calls = num_calls(scheduler(solver, config), int(steps), solver)
    assert plan.num_steps == calls
    assert cost.mean(plan, EVERYTHING) <= cost.mean(uniform(calls, 3, MODELS[model].protocol.branch), EVERYTHING)
    assert plan.has_idle_steps or plan.order != 0 or name == "mini-sd-dpm-solver++-25-guidance-7.5"  # nothing was safer


def test_there_is_one_for_every_model_solver_and_number_of_steps() -> None:
    models, solvers = ("mini-ldm", "mini-ddpm", "mini-sd"), ("ddim", "plms", "dpm-solver++")
    found = {name for name in NAMES if "guidance" not in name}
    assert found == {f"{m}-{s}-{steps}" for m in models for s in solvers for steps in (20, 25, 50)}


def test_the_protocols_guidance_is_the_default() -> None:
    assert recommended("mini-sd", "ddim", 50, 3.0) == recommended("mini-sd", "ddim", 50)
    with pytest.raises(DeepCacheError, match=r"got mini-sd-ddim-50-guidance-2"):
        recommended("mini-sd", "ddim", 50, 2.0)


def test_what_was_not_found_names_what_was() -> None:
    with pytest.raises(DeepCacheError, match=r"mini-ldm-ddim-50.*; got sd-1\.5-ddim-50; deepcache\.tune"):
        recommended("sd-1.5", "ddim", 50)


def test_a_strength_of_guidance_that_is_no_number_is_one_line() -> None:
    wrong: Any = "strong"
    with pytest.raises(DeepCacheError, match="expected guidance_scale to be a number, got 'strong'"):
        recommended("mini-sd", "ddim", 50, wrong)
