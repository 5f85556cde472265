"""Which U-Nets and pipelines can be cached; every other U-Net is refused by name, with the list of known classes."""

from __future__ import annotations

from types import SimpleNamespace

import diffusers
import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.models.unets import unet_2d_blocks as blocks
from torch import nn

from deepcache import DeepCacheError, UnsupportedUNetError, cached
from deepcache.unets.diffusers.stages import CLASSES, DOWN_BLOCKS, UP_BLOCKS
from deepcache.unets.pipelines import num_descents
from deepcache.unets.registry import cut
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
def test_foreign_unet_is_refused_by_name(name: str) -> None:
    with torch.device("meta"):
        model = getattr(diffusers, name)()
    _assert_refused(model, f"got a {name}", CLASSES)


def test_subclass_of_a_known_unet_is_refused() -> None:
    """A subclass may have another forward pass."""

    class Mine(UNet2DModel):
        pass

    model = unet("ddpm")
    model.__class__ = Mine
    _assert_refused(model, "got a Mine", CLASSES)


@pytest.mark.parametrize(
    ("kind", "changes", "refused", "known"),
    [
        (UNet2DModel, {"down_block_types": ("KDownBlock2D",)}, blocks.KDownBlock2D, DOWN_BLOCKS),
        (UNet2DModel, {"up_block_types": ("KUpBlock2D",)}, blocks.KUpBlock2D, UP_BLOCKS),
        (UNet2DConditionModel, {"down_block_types": ("KDownBlock2D",)}, blocks.KDownBlock2D, DOWN_BLOCKS),
        (
            UNet2DConditionModel,
            {"down_block_types": ("KCrossAttnDownBlock2D",)},
            blocks.KCrossAttnDownBlock2D,
            DOWN_BLOCKS,
        ),
        (UNet2DConditionModel, {"up_block_types": ("KCrossAttnUpBlock2D",)}, blocks.KCrossAttnUpBlock2D, UP_BLOCKS),
    ],
)
def test_unknown_block_is_refused_by_name(
    kind: type[nn.Module], changes: dict[str, object], refused: type[nn.Module], known: tuple[type[nn.Module], ...]
) -> None:
    plain = {"block_out_channels": (32,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    with torch.device("meta"):
        model = kind(**{**plain, "layers_per_block": 1, **changes})
    _assert_refused(model, f"has a {refused.__name__}", known)


def test_subclass_of_a_known_block_is_refused() -> None:
    """A subclass may have another forward pass."""

    class Mine(blocks.DownBlock2D):
        pass

    model = unet("ddpm")
    model.down_blocks[0].__class__ = Mine
    _assert_refused(model, "has a Mine", DOWN_BLOCKS)


def test_skip_up_blocks_among_others_are_refused() -> None:
    """A skip block is given an image that other blocks do not pass on."""
    mixed = {"up_block_types": ("SkipUpBlock2D", "UpBlock2D", "SkipUpBlock2D")}
    _assert_refused(unet("ncsn++", **mixed), "some are not", ())


def test_unsupported_unet_is_an_error_of_the_library() -> None:
    assert issubclass(UnsupportedUNetError, DeepCacheError)


def _assert_refused(model: nn.Module, reason: str, known: tuple[type[nn.Module], ...]) -> None:
    with pytest.raises(UnsupportedUNetError) as caught:
        cut(model, 0)
    assert reason in str(caught.value)
    assert all(kind.__name__ in str(caught.value) for kind in known)
    with pytest.raises(UnsupportedUNetError), cached(model, interval=2):
        raise AssertionError("a block on a U-Net that cannot be cut was entered")
    assert "forward" not in vars(model)


def test_a_pipeline_whose_steps_cannot_be_told_is_refused() -> None:
    """The library knows the pipeline by its name; diffusers has deprecated the class."""
    pipe = type("ScoreSdeVePipeline", (SimpleNamespace,), {})(unet=unet("ddpm"), scheduler=None)
    with pytest.raises(UnsupportedUNetError, match="more than once a step with copies"), cached(pipe, interval=2):
        pass
    assert "forward" not in vars(pipe.unet)
