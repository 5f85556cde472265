"""Multiply-accumulates of full and shallow steps, on meta tensors."""

from __future__ import annotations

from fractions import Fraction
from functools import cache, reduce
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import NAMES, inputs, num_branches, unet
from torch.utils.flop_counter import FlopCounterMode

from deepcache import DeepCacheError, uniform
from deepcache.forward import full_forward, shallow_forward
from deepcache.macs import EVERYTHING, PAPER, PAPER_LDM, Cost, StageCost, cost
from deepcache.models.architectures import ARCHITECTURES
from deepcache.plan import CachePlan
from deepcache.unets import StagedUNet

GIGA = 10**9

# Published values, DeepCache (Ma et al., 2024), mean over the steps in G, at the paper's branch: (steps, interval, G)
TABLE_1_LDM = [(250, 1, 99.82), (250, 2, 52.12), (250, 3, 36.48), (250, 5, 23.50), (250, 10, 13.97), (250, 20, 9.39)]
TABLE_2_CIFAR10 = [(100, 2, 4.15), (100, 3, 3.54), (100, 5, 3.01), (100, 10, 2.63)]
TABLE_2_LSUN = [(100, 1, 248.7), (100, 2, 190.8), (100, 3, 172.3), (100, 5, 156.0)]
TABLE_3_SD = [(50, 1, 338.83)]  # uncached; its cached row is not its own interval's
# CIFAR-10, 100 steps, interval 5. Branches 6 and 7 are left out: published 5.45 and 5.60, here 5.57 and 5.73, which is
# 0.12 = 0.8 * 0.151 more, the upsampler to 16 x 16 that the published rows 3 to 5 and 8 to 11 do count.
TABLE_12 = {0: 1.60, 1: 2.24, 2: 3.01, 3: 3.89, 4: 4.58, 5: 5.31, 8: 5.88, 9: 5.95, 10: 5.99, 11: 6.03}


@cache
def _cost(name: str) -> Cost:
    architecture = ARCHITECTURES[name]
    return cost(architecture.meta(), *architecture.arguments())


@pytest.mark.parametrize(
    ("name", "branch", "row", "tolerance"),
    [
        *(("ldm-4-g", 0, row, 0.01) for row in TABLE_1_LDM),
        *(("ddpm-cifar10", 2, row, 0.01) for row in TABLE_2_CIFAR10),
        *(("ddpm-lsun", 2, row, 0.05) for row in TABLE_2_LSUN),
        *(("sd-1.5", 1, row, 0.01) for row in TABLE_3_SD),
        *(("ddpm-cifar10", branch, (100, 5, macs), 0.015) for branch, macs in TABLE_12.items()),
    ],
)
def test_mean_macs_are_the_published_ones(
    name: str, branch: int, row: tuple[int, int, float], tolerance: float
) -> None:
    num_steps, interval, published = row
    mean = _cost(name).mean(uniform(num_steps, interval, branch), ARCHITECTURES[name].convention)
    assert float(mean / GIGA) == pytest.approx(published, abs=tolerance)


def test_group_norms_tell_the_two_conventions_apart() -> None:
    """Test of the test: the wrong convention misses Table 1's 99.82 G."""
    assert abs(_cost("ldm-4-g").full(PAPER) / GIGA - 99.82) > 0.03


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_products_and_attention_are_half_of_torchs_flops(name: str) -> None:  # independent library
    architecture = ARCHITECTURES[name]
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        architecture.meta().eval()(*architecture.arguments())
    assert 2 * _products(*_cost(name).stages) == counter.get_total_flops()


@pytest.mark.parametrize("name", NAMES)
def test_full_and_shallow_products_are_half_of_torchs_flops(name: str) -> None:  # independent library
    model, (args, kwargs) = StagedUNet(unet(name)), inputs(name, batch=1)
    found = cost(model.unet, *args, **kwargs)
    assert found.num_branches == num_branches(name)
    for branch in range(found.num_branches):
        with FlopCounterMode(display=False) as full:
            _, feature = full_forward(model, branch, *args, **kwargs)
        with FlopCounterMode(display=False) as shallow:
            shallow_forward(model, branch, feature, *args, **kwargs)
        live = (found.outside, *found.down[: branch + 1], *found.up[: branch + 1])
        assert 2 * _products(*found.stages) == full.get_total_flops()
        assert 2 * _products(*live) == shallow.get_total_flops()


@pytest.mark.parametrize("convention", [PAPER, PAPER_LDM, EVERYTHING], ids=str)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_deeper_branch_costs_more_and_less_than_full(name: str, convention: Any) -> None:
    found = _cost(name)
    costs = [found.shallow(branch, convention) for branch in range(found.num_branches)]
    assert costs == sorted(set(costs))
    assert costs[-1] < found.full(convention)


@pytest.mark.parametrize("name", ["ldm-4-g", "ddpm-cifar10"])
def test_only_the_mid_block_is_missing_at_the_last_branch(name: str) -> None:  # exact law
    found = _cost(name)
    assert found.full() - found.shallow(found.num_branches - 1) == found.mid.total()


@pytest.mark.parametrize("branch", [12, -1, 1.0, True, None])
def test_branch_that_the_unet_does_not_have_is_refused(branch: Any) -> None:
    with pytest.raises(DeepCacheError, match=r"expected branch 0\.\.11, one a skip connection of this U-Net, got"):
        _cost("sd-1.5").shallow(branch)


@settings(deadline=None, database=None)
@given(st.data())
def test_mean_is_the_mean_over_the_steps(data: st.DataObject) -> None:
    """Exact law, on any plan: count step by step."""
    num_steps = data.draw(st.integers(1, 60))
    later = data.draw(st.sets(st.integers(1, max(1, num_steps - 1)))) if num_steps > 1 else set()
    plan = CachePlan(num_steps, (0, *sorted(later)), data.draw(st.integers(0, 11)))
    found = _cost("sd-1.5")
    steps = [found.full() if step in plan.full_steps else found.shallow(plan.branch) for step in range(num_steps)]
    assert found.mean(plan) == Fraction(sum(steps), num_steps)
    assert 1 <= found.ratio(plan) <= num_steps


@pytest.mark.parametrize("name", ["ddpm-classes", "sd-1.5", "sdxl"])
def test_cost_is_of_one_sample(name: str) -> None:
    (one, one_more), (many, many_more) = inputs(name, batch=1), inputs(name, batch=3)
    assert cost(unet(name), *one, **one_more) == cost(unet(name), *many, **many_more)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["ddpm", "sd-1.5"])
def test_cost_is_the_same_for_every_type(name: str, dtype: torch.dtype) -> None:
    args, _ = inputs(name)
    other = [value.to(dtype) if isinstance(value, torch.Tensor) else value for value in args]
    assert cost(unet(name).to(dtype), *other) == cost(unet(name), *args)


def test_counting_leaves_the_unet_alone() -> None:
    model, (args, kwargs) = unet("sd-1.5"), inputs("sd-1.5")
    cost(model, *args, **kwargs)
    assert next(model.parameters()).device.type == "cpu"
    assert not any(module._forward_hooks for module in model.modules())


def test_conventions_say_what_they_count() -> None:
    assert "attention products not counted" in str(PAPER)
    assert "attention products counted" in str(EVERYTHING)
    assert "not group norms" in str(PAPER_LDM)
    stage = StageCost("", products=1, biases=10, group_norm=100, attention=1000)
    assert [stage.total(convention) for convention in (PAPER, PAPER_LDM, EVERYTHING)] == [111, 11, 1111]


def _products(*stages: StageCost) -> int:
    return reduce(lambda total, stage: total + stage.products + stage.attention, stages, 0)
