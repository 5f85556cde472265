"""Law 10: whatever loops follow each other in a block, an image is right or its loop is refused.

The oracle is the same loop alone in a block of its own, on elements of a tensor of timesteps, bit for bit. The uncached
image is right as well, since a full step is never wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from deepcache import DeepCacheError, cached, uniform
from tests.cache.test_timeline import ALL, COPIES
from tests.problems import inputs, small_unet

SCHEDULES = {"long": [900, 600, 300, 100, 50], "short": [999, 600, 100], "one step": [999], "rising": [50, 300, 900]}
MODES = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
PROPERTY = settings(max_examples=60, deadline=None, derandomize=True, database=None)
HOW: dict[str, Any] = {"interval": 3, "order": 1}


@dataclass(frozen=True)
class Loop:
    """A denoising loop: its schedule, whether its tensor is new, how it passes timesteps, and where it stops."""

    schedule: str
    is_new: bool
    pass_on: str
    num_steps: int
    mode: str
    seed: int


LOOPS = st.builds(
    Loop,
    st.sampled_from(list(SCHEDULES)),
    st.booleans(),
    st.sampled_from(list(ALL)),
    st.integers(1, 5),
    st.sampled_from(list(MODES)),
    st.integers(1, 3),
)


def _run(model: Any, loop: Loop, timesteps: Tensor, pass_on: Callable[[Tensor, int], Any]) -> Tensor:
    image = loop.seed * inputs("ddpm")[0][0]
    with MODES[loop.mode]():
        for i in range(min(loop.num_steps, len(timesteps))):
            image = image - 0.3 * model(image, pass_on(timesteps, i)).sample
    return image


@cache
def _model() -> Any:
    """One U-Net serves all blocks, since each block leaves the U-Net as it was."""
    return small_unet()


@cache
def _right(schedule: str, num_steps: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the images of a loop alone, cached and uncached."""
    loop = Loop(schedule, is_new=False, pass_on="index", num_steps=num_steps, mode="no_grad", seed=seed)
    model, timesteps = _model(), torch.tensor(SCHEDULES[schedule])
    uncached = _run(model, loop, timesteps, ALL["index"])
    with cached(model, **HOW):
        return _run(model, loop, timesteps, ALL["index"]), uncached


def _check(loops: list[Loop], owns: str | None, told: dict[str, int]) -> int:
    """Run loops under one block, check every image, and count those that were not refused."""
    model, tensors = _model(), {name: torch.tensor(values) for name, values in SCHEDULES.items()}
    scheduler = None if owns is None else SimpleNamespace(timesteps=tensors[owns])
    rights = [_right(loop.schedule, loop.num_steps, loop.seed) for loop in loops]  # before the block is open
    num_right = 0
    with cached(SimpleNamespace(unet=model, scheduler=scheduler), **HOW, **told) as cache:
        for loop, right in zip(loops, rights, strict=True):
            if loop.is_new:
                tensors[loop.schedule] = tensors[loop.schedule].clone()
                if scheduler is not None and loop.schedule == owns:  # as the pipeline's set_timesteps does
                    scheduler.timesteps = tensors[loop.schedule]
            try:
                image = _run(model, loop, tensors[loop.schedule], ALL[loop.pass_on])
            except DeepCacheError:
                cache.reset()
                continue
            assert any(torch.equal(image, either) for either in right), loop
            num_right += 1
    return num_right


SEQUENCES = st.lists(LOOPS, min_size=2, max_size=5)
OWNERS = st.sampled_from([None, *SCHEDULES])


def _check_of(loops: list[Loop], owns: str | None) -> None:
    _check(loops, owns, {})


def test_every_loop_is_right_or_refused() -> None:
    PROPERTY(given(SEQUENCES, OWNERS)(_check_of))()


@PROPERTY
@given(st.lists(LOOPS, min_size=2, max_size=4))
def test_loops_of_a_number_of_steps_that_is_told_are_right_or_refused(loops: list[Loop]) -> None:
    """The number of steps is true here; a reset follows a loop that stops, as the documentation asks."""
    whole = [Loop("long", loop.is_new, loop.pass_on, 5, loop.mode, loop.seed) for loop in loops]
    assert _check(whole, None, {"num_steps": 5}) == len(whole)


@pytest.mark.parametrize("owns", [None, "long"])
@pytest.mark.parametrize("pass_on", ALL)
def test_one_loop_is_right_where_it_can_be_told_and_else_refused(pass_on: str, owns: str | None) -> None:
    """Test of the test: a cache that refuses everything would pass the property."""
    loop = Loop("long", is_new=False, pass_on=pass_on, num_steps=5, mode="no_grad", seed=1)
    assert _check([loop], owns, {}) == (owns is not None or pass_on not in COPIES)
    assert _check([loop], owns, {"num_steps": 5}) == 1


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("deepcache.cache.timeline._lost", lambda *_: 1000.0),
        ("deepcache.cache.generation.ActiveGeneration._repeat", lambda self: self._next()),
        ("deepcache.cache.generation.ActiveGeneration.is_continued_at", lambda *_: True),
    ],
    ids=["any number is a timestep", "a repeated place is the next step", "an earlier place goes on"],
)
def test_broken_tracking_is_found(monkeypatch: pytest.MonkeyPatch, name: str, broken: Any) -> None:
    """Test of the test."""
    monkeypatch.setattr(name, broken)
    only_found = settings(PROPERTY, phases=[Phase.generate], report_multiple_bugs=False)
    with pytest.raises(AssertionError):
        only_found(given(SEQUENCES, OWNERS)(_check_of))()


def test_a_plan_begins_anew_after_a_whole_generation_of_a_bare_unet_and_only_where_the_timesteps_do() -> None:
    """Numbers as timesteps: the next generation begins at a larger one; a step more than planned is refused."""
    model, plan, timesteps = _model(), uniform(5, 2, 0), [900.0, 700.0, 500.0, 300.0, 100.0]
    x = inputs("ddpm")[0][0]

    def outputs() -> list[Tensor]:
        with torch.no_grad():
            return [model(x, timestep).sample for timestep in timesteps]

    with cached(model, plan) as cache:
        first, again = outputs(), outputs()
        assert [generation.full_steps for generation in cache.generations] == [plan.full_steps] * 2
        with pytest.raises(DeepCacheError, match="one more"), torch.no_grad():
            model(x, 50.0)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
