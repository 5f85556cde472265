"""A cached U-Net copied, saved or moved to another type from within the block.

The oracle is the U-Net before it was cached, bit for bit.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from deepcache import cached
from tests.problems import inputs, loop, unet

NAME, TIMESTEPS = "ddpm", torch.tensor([900, 700])


def _saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def _from_state(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    twin = unet(NAME, seed=1)
    twin.load_state_dict(torch.load(file, weights_only=True))
    return twin


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": _saved,
    "state_dict": _from_state,
}


@pytest.mark.parametrize("clone", COPIES.values(), ids=COPIES)
def test_copy_of_a_cached_unet_is_an_ordinary_unet(
    clone: Callable[[nn.Module], nn.Module], expected: Tensor, uncached: Tensor
) -> None:
    """The copy has weights of its own, and the U-Net that was copied goes on as if nothing had happened."""
    model = unet(NAME)
    with cached(model, interval=3) as cache:
        model(inputs(NAME)[0][0], torch.tensor([701, 700])[0])
        twin = clone(model)
        assert torch.equal(loop(twin), uncached)
        assert torch.equal(loop(model), expected)
        assert [g.num_steps for g in cache.generations] == [1, 5]
        with torch.no_grad():
            model.conv_in.weight.zero_()
    assert torch.equal(loop(twin), uncached)
    with cached(twin, interval=3):
        assert torch.equal(loop(twin), expected)
    forward: Any = twin.forward
    assert forward.__func__ is type(twin).forward


def test_saved_from_within_the_block_is_the_unet(tmp_path: Path, uncached: Tensor) -> None:
    model = unet(NAME)
    with cached(model, interval=3):
        loop(model)
        model.save_pretrained(tmp_path)
    assert torch.equal(loop(UNet2DModel.from_pretrained(tmp_path)), uncached)


@pytest.mark.parametrize("move", [lambda model: model.to(torch.float64), lambda model: model.double()])
def test_unet_may_be_moved_to_another_type_while_cached(move: Callable[[nn.Module], Any]) -> None:
    """The U-Net is moved in the middle of a generation, and the next step is then full."""
    model, ((sample, _), _) = unet(NAME), inputs(NAME)
    want = move(unet(NAME))(sample.double(), TIMESTEPS[1]).sample
    with cached(model, interval=3) as cache:
        model(sample, TIMESTEPS[0])
        move(model)
        assert torch.equal(model(sample.double(), TIMESTEPS[1]).sample, want)
    assert cache.generations[0].full_steps == (0, 1)


def test_unet_may_be_halved_while_cached() -> None:
    model, ((sample, _), _) = unet(NAME), inputs(NAME)
    want = unet(NAME).half()(sample.half(), 900).sample
    with cached(model, interval=3):
        loop(model)
        assert torch.equal(model.half()(sample.half(), torch.tensor([900, 800])[0]).sample, want)
    assert "forward" not in vars(model)
