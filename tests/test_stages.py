"""A U-Net as a nest of stages."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL, UNet1DModel, UNet2DConditionModel, UNet2DModel
from diffusers.models.unets import unet_2d_blocks as blocks
from problems import NAMES, num_branches, staged, unet
from torch import nn

from deepcache import DeepCacheError, UnsupportedUNetError
from deepcache.stages import DOWN_BLOCKS, MID_BLOCKS, UP_BLOCKS, nest
from deepcache.unets import FAMILIES, StagedUNet


@pytest.mark.parametrize("name", NAMES)
def test_one_branch_a_skip(name: str) -> None:  # exact law: conv_in, resnets and downsamplers, counted by hand
    found = staged(name).nest
    assert found.num_branches == len(found.down) == len(found.up) == num_branches(name)


@pytest.mark.parametrize(("name", "skips"), [("sd-1.5", 12), ("ldm-4-g", 12), ("ddpm", 6), ("ddpm-attention", 4)])
def test_known_topologies_have_their_number_of_skips(name: str, skips: int) -> None:  # stored values
    assert staged(name).nest.num_branches == skips


@pytest.mark.parametrize("name", NAMES)
def test_skip_that_is_pushed_is_popped_by_the_stage_of_its_number(name: str) -> None:
    """Exact law: up stage i takes g_{i+1} and skip i side by side, so its input has the channels of both."""
    found = staged(name).nest
    pushed = [_out_channels(stage.module) for stage in found.down]
    carried = pushed[-1]  # the mid block keeps the number of channels
    for i in reversed(range(found.num_branches)):
        assert found.up[i].resnet.conv1.in_channels == carried + pushed[i]
        carried = found.up[i].resnet.out_channels


@pytest.mark.parametrize("name", NAMES)
def test_every_module_of_the_blocks_belongs_to_exactly_one_stage(name: str) -> None:
    """Exact law: no weight of the blocks is missed and none runs twice."""
    model = unet(name)
    found = nest(model)
    owned = [
        p for stage in (*found.down, found.mid, *found.up) for module in stage.modules for p in module.parameters()
    ]
    parts = (model.conv_in, model.down_blocks, model.mid_block, model.up_blocks)
    inside = [p for part in parts if part is not None for p in part.parameters()]
    assert len(owned) == len({id(p) for p in owned})
    assert {id(p) for p in owned} == {id(p) for p in inside}


def test_stages_are_named_by_their_place_in_the_unet() -> None:  # stored values
    found = staged("ddpm-attention").nest
    assert [stage.name for stage in found.down] == [
        "conv_in",
        "down_blocks.0.0",
        "down_blocks.0.downsampler",
        "down_blocks.1.0",
    ]
    assert found.mid.name == "mid"
    assert [stage.name for stage in found.up] == ["up_blocks.1.1", "up_blocks.1.0", "up_blocks.0.1", "up_blocks.0.0"]


def test_upsampler_belongs_to_the_last_stage_of_its_block() -> None:  # stored value: SD 1.5's branches
    found = staged("sd-1.5").nest
    assert [i for i, stage in enumerate(found.up) if stage.upsampler is not None] == [3, 6, 9]


@pytest.mark.parametrize("name", ["no-mid", "ddpm-no-mid"])
def test_missing_mid_block_is_the_identity(name: str) -> None:
    mid, hidden = staged(name).nest.mid, torch.ones(1)
    assert mid.modules == ()
    assert mid(hidden, None) is hidden


@pytest.mark.parametrize(
    ("kind", "changes", "refused", "known"),
    [
        (UNet2DModel, {"down_block_types": ("SkipDownBlock2D",)}, blocks.SkipDownBlock2D, DOWN_BLOCKS),
        (UNet2DModel, {"up_block_types": ("SkipUpBlock2D",)}, blocks.SkipUpBlock2D, UP_BLOCKS),
        (UNet2DConditionModel, {"down_block_types": ("KDownBlock2D",)}, blocks.KDownBlock2D, DOWN_BLOCKS),
        (
            UNet2DConditionModel,
            {"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"},
            blocks.UNetMidBlock2DSimpleCrossAttn,
            MID_BLOCKS,
        ),
    ],
)
def test_unknown_block_is_refused_by_name(
    kind: type[nn.Module], changes: dict[str, object], refused: type[nn.Module], known: tuple[type[nn.Module], ...]
) -> None:
    plain = {"block_out_channels": (32,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    with torch.device("meta"):
        model = kind(**{**plain, "layers_per_block": 1, **changes})
    with pytest.raises(UnsupportedUNetError) as caught:
        StagedUNet(model)
    assert f"has a {refused.__name__}" in str(caught.value)
    assert all(supported.__name__ in str(caught.value) for supported in known)


def test_subclass_of_a_known_block_is_refused() -> None:
    """A subclass may have another forward pass."""

    class Mine(blocks.DownBlock2D):
        pass

    model = unet("ddpm")
    model.down_blocks[0].__class__ = Mine
    with pytest.raises(UnsupportedUNetError, match="has a Mine"):
        StagedUNet(model)


def test_skip_that_nobody_pops_is_refused() -> None:
    model = unet("ddpm")
    del model.up_blocks[0].resnets[0]
    with pytest.raises(UnsupportedUNetError, match="pushes 6 and pops 5"):
        StagedUNet(model)


@pytest.mark.parametrize("build", [nn.Identity, lambda: UNet1DModel(block_out_channels=(32, 32, 64)), AutoencoderKL])
def test_foreign_unet_is_refused_by_name(build: type[nn.Module]) -> None:
    with torch.device("meta"):
        model = build()
    with pytest.raises(UnsupportedUNetError) as caught:
        StagedUNet(model)
    assert type(model).__name__ in str(caught.value)
    assert all(kind.__name__ in str(caught.value) for kind in FAMILIES)


def test_unsupported_unet_is_an_error_of_the_library() -> None:
    assert issubclass(UnsupportedUNetError, DeepCacheError)


def _out_channels(module: nn.Module) -> int:
    return module.out_channels  # type: ignore[return-value]
