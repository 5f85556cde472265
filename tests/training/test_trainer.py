"""A training that was stopped and started again is the same training (an exact law)."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from bench.training.trainer import Recipe, train

RECIPE = Recipe(num_steps=200, lr=0.05, warmup=10, ema=0.9, save_every_s=0)


class StoppedError(Exception):
    pass


def slope(model: nn.Module, step: int) -> torch.Tensor:
    x = torch.randn(16, 1, generator=torch.Generator().manual_seed(step))
    return (model(x) - 3 * x).square().mean()


def line() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(1, 1)


def test_training_learns(tmp_path):
    found = train(line(), slope, RECIPE, tmp_path)
    assert found.weight.item() == pytest.approx(3, abs=0.1)


def test_a_stopped_training_goes_on_as_if_it_had_not_stopped(tmp_path):
    def stops(model: nn.Module, step: int) -> torch.Tensor:
        if step == 150:
            raise StoppedError
        return slope(model, step)

    whole = train(line(), slope, RECIPE, tmp_path / "whole")
    with pytest.raises(StoppedError):
        train(line(), stops, RECIPE, tmp_path / "parts")
    parts = train(line(), slope, RECIPE, tmp_path / "parts")
    torch.testing.assert_close(parts.state_dict(), whole.state_dict(), rtol=0, atol=0)
    lines = [json.loads(text) for text in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [100, 200]
    assert {line["threads"] for line in lines} == {torch.get_num_threads()}


def test_a_finished_training_is_not_run_again(tmp_path):
    first = train(line(), slope, RECIPE, tmp_path)
    again = train(line(), lambda *_: pytest.fail("ran a step"), RECIPE, tmp_path)
    torch.testing.assert_close(again.state_dict(), first.state_dict(), rtol=0, atol=0)
