"""A U-Net as a nest of stages."""

from __future__ import annotations

from typing import Any

import pytest
from diffusers.models.upsampling import Upsample2D
from torch import nn

from deepcache import UnsupportedUNetError
from deepcache.unets.diffusers.stages import nest
from deepcache.unets.family import Stage
from tests.problems import NAMES, num_branches, shared, unet


@pytest.mark.parametrize("name", NAMES)
def test_one_branch_a_skip(name: str) -> None:  # exact law: conv_in, resnets and downsamplers, counted by hand
    found = nest(shared(name))
    assert found.num_branches == len(found.down) == len(found.up) == num_branches(name)


@pytest.mark.parametrize(
    ("name", "skips"),
    [
        *(("sd-1.5", 12), ("sd-2", 12), ("ldm-4-g", 12), ("sdxl", 9)),
        *(("bk-sdm-base", 8), ("bk-sdm-small", 8), ("bk-sdm-tiny", 6), ("ddpm", 6), ("ddpm-attention", 4)),
    ],
)
def test_known_topologies_have_their_number_of_skips(name: str, skips: int) -> None:  # stored values
    assert nest(shared(name)).num_branches == skips


@pytest.mark.parametrize("name", NAMES)
def test_skip_that_is_pushed_is_popped_by_the_stage_of_its_number(name: str) -> None:
    """An exact law: up stage i takes g_{i+1} and skip i side by side, so its input has the channels of both."""
    found = nest(shared(name))
    pushed = [_resnet(stage).out_channels for stage in found.down]
    carried = pushed[-1]  # the mid block keeps the number of channels
    for i in reversed(range(found.num_branches)):
        assert _resnet(found.up[i]).conv1.in_channels == carried + pushed[i]
        carried = _resnet(found.up[i]).out_channels


@pytest.mark.parametrize("name", NAMES)
def test_every_module_of_the_blocks_belongs_to_exactly_one_stage(name: str) -> None:
    """An exact law: no weight of the blocks is missed, and no weight belongs to two stages."""
    model = shared(name)
    found = nest(model)
    owned = [
        p for stage in (*found.down, found.mid, *found.up) for module in stage.modules for p in module.parameters()
    ]
    parts = (model.conv_in, model.down_blocks, model.mid_block, model.up_blocks)
    inside = [p for part in parts if part is not None for p in part.parameters()]
    assert len(owned) == len({id(p) for p in owned})
    assert {id(p) for p in owned} == {id(p) for p in inside}


def test_stages_are_named_by_their_place_in_the_unet() -> None:  # stored values
    found = nest(shared("ddpm-attention"))
    assert [stage.name for stage in found.down] == [
        "conv_in",
        "down_blocks.0.0",
        "down_blocks.0.downsampler",
        "down_blocks.1.0",
    ]
    assert found.mid.name == "mid"
    assert [stage.name for stage in found.up] == ["up_blocks.1.1", "up_blocks.1.0", "up_blocks.0.1", "up_blocks.0.0"]


def test_upsampler_belongs_to_the_last_stage_of_its_block() -> None:  # stored value: SD 1.5's branches
    up = nest(shared("sd-1.5")).up
    assert [i for i, stage in enumerate(up) if isinstance(stage.modules[-1], Upsample2D)] == [3, 6, 9]
    assert [i for i, stage in enumerate(up) if stage.is_last] == [0, 3, 6, 9]


@pytest.mark.parametrize("name", ["no-mid", "ddpm-no-mid", "bk-sdm-small", "bk-sdm-tiny"])
def test_missing_mid_block_has_no_modules(name: str) -> None:
    assert nest(shared(name)).mid.modules == ()


def test_skip_that_nobody_pops_is_refused() -> None:
    model = unet("ddpm")
    del model.up_blocks[0].resnets[0]
    with pytest.raises(UnsupportedUNetError, match="this UNet2DModel pushes 6 and pops 5"):
        nest(model)


def _resnet(stage: Stage) -> Any:
    """Return the module that decides on the channels of a stage: its resnet, downsampler or `conv_in`."""
    first: nn.Module = stage.modules[0]
    return getattr(first, "spatial_res_block", first)
