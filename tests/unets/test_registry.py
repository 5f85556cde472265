"""One family cuts diffusers' U-Nets of known blocks, and another one watches every other network."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.models.unets import unet_2d_blocks as blocks
from torch import nn

from deepcache import DeepCacheError, UnsupportedUNetError, cached
from deepcache.unets.diffusers import DIFFUSERS
from deepcache.unets.diffusers.stages import CLASSES, DOWN_BLOCKS, UP_BLOCKS, nest
from deepcache.unets.pipelines import num_descents
from deepcache.unets.registry import cut, family_of
from deepcache.unets.watched import WATCHED
from tests.problems import NAMES, shared, unet

FOREIGN = (
    "UNetControlNetXSModel",
    "Kandinsky3UNet",
    "UVit2DModel",
    "StableCascadeUNet",
    "UNet1DModel",
    "AutoencoderKL",
)


def test_every_family_and_every_block_that_is_known_is_tried() -> None:
    """Test of the test: the laws over `NAMES` leave no class and no block out."""
    models = [shared(name) for name in NAMES]
    assert {type(model) for model in models} == set(CLASSES)
    assert {type(block) for model in models for block in model.down_blocks} == set(DOWN_BLOCKS)
    assert {type(block) for model in models for block in model.up_blocks} == set(UP_BLOCKS)


def test_repaints_calls_are_where_timesteps_descend() -> None:  # stored values
    assert num_descents([9, 8, 7, 8, 9, 8, 7, 6]) == 6
    assert num_descents([]) == 0


@pytest.mark.parametrize("name", FOREIGN)
def test_another_class_is_watched(name: str) -> None:
    with torch.device("meta"):
        model = getattr(diffusers, name)()
    assert family_of(model) is WATCHED


def test_subclass_of_a_known_unet_is_watched() -> None:
    """A subclass may have another forward pass."""

    class Mine(UNet2DModel):
        pass

    model = unet("ddpm")
    assert family_of(model) is DIFFUSERS
    model.__class__ = Mine
    assert family_of(model) is WATCHED


@pytest.mark.parametrize(
    ("kind", "changes", "unknown"),
    [
        (UNet2DModel, {"down_block_types": ("KDownBlock2D",)}, blocks.KDownBlock2D),
        (UNet2DModel, {"up_block_types": ("KUpBlock2D",)}, blocks.KUpBlock2D),
        (UNet2DConditionModel, {"down_block_types": ("KDownBlock2D",)}, blocks.KDownBlock2D),
        (UNet2DConditionModel, {"down_block_types": ("KCrossAttnDownBlock2D",)}, blocks.KCrossAttnDownBlock2D),
        (UNet2DConditionModel, {"up_block_types": ("KCrossAttnUpBlock2D",)}, blocks.KCrossAttnUpBlock2D),
    ],
)
def test_known_unet_with_an_unknown_block_is_watched(
    kind: type[nn.Module], changes: dict[str, object], unknown: type[nn.Module]
) -> None:
    plain = {"block_out_channels": (32,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    with torch.device("meta"):
        model = kind(**{**plain, "layers_per_block": 1, **changes})
    _assert_watched(model, f"has a {unknown.__name__}")


def test_subclass_of_a_known_block_is_watched() -> None:
    """A subclass may have another forward pass."""

    class Mine(blocks.DownBlock2D):
        pass

    model = unet("ddpm")
    model.down_blocks[0].__class__ = Mine
    _assert_watched(model, "has a Mine")


def test_skip_up_blocks_among_others_are_watched() -> None:
    """A skip block is given an image that other blocks do not pass on."""
    mixed = {"up_block_types": ("SkipUpBlock2D", "UpBlock2D", "SkipUpBlock2D")}
    _assert_watched(unet("ncsn++", **mixed), "some are not")


def _assert_watched(model: nn.Module, reason: str) -> None:
    with pytest.raises(UnsupportedUNetError, match=reason):
        nest(model)
    assert family_of(model) is WATCHED


@pytest.mark.parametrize("other", [object(), torch.zeros(1), lambda sample: sample])
def test_what_is_no_network_is_refused_by_name(other: Any) -> None:
    with pytest.raises(UnsupportedUNetError, match=f"got a {type(other).__name__}"):
        cut(other, 0)


def test_unsupported_unet_is_an_error_of_the_library() -> None:
    assert issubclass(UnsupportedUNetError, DeepCacheError)


def test_a_pipeline_whose_steps_cannot_be_told_is_refused() -> None:
    """The library knows the pipeline by its name; diffusers has deprecated the class."""
    pipe = type("ScoreSdeVePipeline", (SimpleNamespace,), {})(unet=unet("ddpm"), scheduler=None)
    with pytest.raises(UnsupportedUNetError, match="more than once a step with copies"), cached(pipe, interval=2):
        pass
    assert "forward" not in vars(pipe.unet)
