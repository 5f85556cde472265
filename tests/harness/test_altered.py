"""U-Nets that are cut otherwise on purpose: the oracles are the unaltered steps on zeros, or at the next branch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bench.gate import broken
from bench.harness.altered import with_shallow, zeroed
from deepcache import cached
from deepcache.unets.registry import cut
from tests.problems import inputs, loop, shared, unet

ARGUMENTS = inputs("ddpm")[0]
BRANCH = 1


def shallow(branch: int, *, on_zeros: bool = False) -> Tensor:
    """Return the output of a shallow step on the feature of a full step, or on zeros."""
    steps = cut(shared("ddpm"), branch)
    _, feature = steps.full(*ARGUMENTS)
    given = tuple(map(torch.zeros_like, feature)) if on_zeros else feature
    return steps.shallow(given, *ARGUMENTS).sample


def test_a_zeroed_step_is_the_step_on_zeros() -> None:
    expected = shallow(BRANCH, on_zeros=True)
    with broken.BROKEN["zeros"]():
        assert torch.equal(shallow(BRANCH), expected)
    assert not torch.equal(shallow(BRANCH), expected)


def test_a_stage_too_many_is_the_next_branch() -> None:
    expected = shallow(BRANCH + 1, on_zeros=True)
    with broken.BROKEN["stage"]():
        assert torch.equal(shallow(BRANCH, on_zeros=True), expected)
    assert not torch.equal(shallow(BRANCH, on_zeros=True), expected)


def test_a_slow_step_gives_what_it_gave() -> None:
    expected = shallow(BRANCH)
    with broken.BROKEN["slow"]():
        assert torch.equal(shallow(BRANCH), expected)


@pytest.mark.parametrize("alter", [lambda: with_shallow(zeroed), *broken.BROKEN.values()])
def test_the_seam_is_what_it_was_after_the_block(alter: Any) -> None:
    model = unet("ddpm")
    with cached(model, interval=3, branch=BRANCH):
        expected = loop(model)
    with alter(), cached(model, interval=3, branch=BRANCH):
        loop(model)
    with cached(model, interval=3, branch=BRANCH):
        assert torch.equal(loop(model), expected)
