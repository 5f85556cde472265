"""U-Nets whose weights are offloaded, cast or quantised. The oracle is the same U-Net without a cache, bit for bit."""

from __future__ import annotations

import pytest
import torch

from deepcache import UnsupportedUNetError, cached
from tests.cells import BRANCHES, EXACT, of_stored
from tests.problems import loop, unet
from tests.storage import BLOCKS, QUANTISED, STORAGE
from tests.support import documented


def test_full_and_shallow_steps_are_those_of_the_unet() -> None:  # laws 1 and 2
    """docs/support.md says so for each kind of storage, and `tests/cache/test_support.py` tries every cell of it."""
    found = documented("Weights that are offloaded, cast or quantised")
    exact = [name for name in STORAGE if name != BLOCKS]
    assert {(name, branch): found[name][branch] for name in exact for branch in BRANCHES} == dict.fromkeys(
        [(name, branch) for name in exact for branch in BRANCHES], EXACT
    )


@pytest.mark.filterwarnings("ignore")  # of packages that the suite does not choose
@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("package", QUANTISED, ids=", ".join)
def test_the_same_where_a_package_quantises_the_weights(package: tuple[str, str], branch: str) -> None:
    pytest.importorskip(package[0])
    model = unet("sd-1.5")
    QUANTISED[package](model)
    assert of_stored(model, branch) == EXACT


@pytest.mark.parametrize("name", [name for name in STORAGE if name not in (BLOCKS, "torch's dynamic int8")])
def test_interval_one_equals_uncached_however_the_weights_are_kept(name: str) -> None:  # law 3
    model, ordinary = unet("ddpm"), unet("ddpm")
    for each in (model, ordinary):
        STORAGE[name](each)
    with cached(model, interval=1):
        assert torch.equal(loop(model), loop(ordinary))


@pytest.mark.parametrize("branch", range(6))
def test_block_level_offloading_is_refused_in_the_same_way_at_every_branch(branch: int) -> None:
    model = unet("ddpm")
    STORAGE[BLOCKS](model)
    ran: list[int] = []
    model.conv_in.register_forward_hook(lambda *_: ran.append(1))
    with (
        pytest.raises(
            UnsupportedUNetError, match='offload it with offload_type="leaf_level" and use_stream=False'
        ) as caught,
        cached(model, interval=3, branch=branch),
    ):
        pass
    assert "\n" not in str(caught.value)
    assert not ran


def test_leaf_level_with_streams_is_refused_as_block_level_is() -> None:
    """A stream needs an accelerator: the hook that it puts on the U-Net stands for it."""
    from diffusers.hooks.group_offloading import GroupOffloadingHook, HookRegistry, ModuleGroup

    model = unet("ddpm")
    group = ModuleGroup([], torch.device("cpu"), torch.device("cpu"), model, model)
    HookRegistry.check_if_exists_or_initialize(model).register_hook(
        GroupOffloadingHook(group, config=None), "group_offloading"
    )
    with pytest.raises(UnsupportedUNetError, match="with streams"), cached(model, interval=3):
        pass


def test_what_the_advice_says_is_cached_exactly() -> None:
    """diffusers' own functions go from offloading by blocks to offloading by leaves."""
    model = unet("ddpm")
    STORAGE[BLOCKS](model)
    model._diffusers_hook.remove_hook("group_offloading", recurse=True)
    STORAGE["group offloading, leaf_level"](model)
    with cached(model, interval=1):
        assert torch.equal(loop(model), loop(unet("ddpm")))
