"""Every optional input keeps the laws of the kernel, or is refused by name before anything runs."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from deepcache import UnsupportedUNetError, cached
from deepcache.unets.calls import parameters
from deepcache.unets.diffusers.forward import full_forward
from deepcache.unets.diffusers.views import Cut
from tests.optional import OPTIONAL, PAIRS, TRIED, Call
from tests.problems import assert_laws_of_kernel, at, inputs, num_branches, shared, twice, unet


@cache
def _call(which: str, name: str) -> Call:
    return OPTIONAL[which](name)


def _output(call: Call, timestep: Tensor | None = None) -> Tensor:
    model, *given = call
    args, kwargs = deepcopy(given)
    if timestep is not None:  # which must not be a copy
        args, kwargs = at(timestep, args, kwargs)
    return model(*args, **kwargs).sample


def test_every_optional_input_is_tried() -> None:
    assert set(TRIED) == set(OPTIONAL)


@pytest.mark.parametrize(("which", "name"), PAIRS)
def test_optional_input_keeps_laws(which: str, name: str) -> None:  # laws 1 and 2
    """On one U-Net, inputs that enter between stages are tried at every branch, and the others at three."""
    model, args, kwargs = _call(which, name)
    last = num_branches(name) - 1
    enters_between = any("residual" in key for key in kwargs) or which == "odd size"
    branches = range(last + 1) if enters_between else {0, last // 2, last}
    assert_laws_of_kernel(model, branches if name == TRIED[which][0] else (0, last), args, kwargs)


@pytest.mark.parametrize(("which", "name"), [(which, names[0]) for which, names in TRIED.items()])
def test_another_value_of_an_optional_input_gives_another_output(which: str, name: str) -> None:
    """Test of the test: an input that changes nothing would pass the test above."""
    assert not torch.equal(_output(_call(which, name)), _output(OPTIONAL[which](name, seed=1)))


@pytest.mark.parametrize(
    ("which", "name"), [("T2I-Adapter", "bk-sdm-tiny"), ("FreeU", "bk-sdm-base"), ("LoRA scale", "animatediff")]
)
def test_cached_calls_with_an_optional_input_equal_forward_and_have_a_cost(which: str, name: str) -> None:
    """`tests/cache/test_support.py` makes such calls with every input, and `test_macs.py` counts most of them."""
    call = _call(which, name)
    expected = _output(call)
    with cached(call[0], interval=2, branch=1) as cache:
        found = [_output(call, t) for t in twice(*call)]
        (generation,) = cache.generations
    assert all(torch.equal(output, expected) for output in found)
    assert (generation.num_calls, generation.full_steps) == (2, (0,))
    assert generation.macs > 0


@pytest.mark.parametrize(("which", "name"), [pair for pair in PAIRS if "T2I-Adapter" in pair[0]])
def test_forward_takes_every_residual_of_a_t2i_adapter(which: str, name: str) -> None:
    """Test of the test: all residuals fit, that of the mid block too, so that none is left over."""
    model, args, kwargs = _call(which, name)
    residuals = list(kwargs["down_intrablock_additional_residuals"])
    full_forward(model, Cut.of(model, 0), *args, **{**kwargs, "down_intrablock_additional_residuals": residuals})
    assert not residuals


@pytest.mark.parametrize("name", ["sd-1.5", "animatediff", "modelscope"])
def test_controlnets_mid_residual_alone_keeps_laws(name: str) -> None:  # Stable Diffusion's U-Net passes it over
    model, args, kwargs = OPTIONAL["ControlNet's residuals"](name)
    del kwargs["down_block_additional_residuals"]
    assert_laws_of_kernel(model, (0, num_branches(name) - 1), args, kwargs)


def test_down_residuals_alone_are_controlnets_where_no_adapter_is_known() -> None:
    model, args, kwargs = OPTIONAL["ControlNet's residuals"]("animatediff")
    del kwargs["mid_block_additional_residual"]
    assert_laws_of_kernel(model, range(num_branches("animatediff")), args, kwargs)
    with cached(model, interval=2):
        first, second = (_output((model, args, kwargs), t) for t in twice(model, args, kwargs))
    assert torch.equal(first, second)


def test_all_positional_residuals_keep_laws() -> None:
    model, args, kwargs = _call("ControlNet and T2I-Adapter", "sd-1.5")
    names = parameters(type(model))
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    assert_laws_of_kernel(model, (0, 4, 11), tuple(given.get(key) for key in names[:-1]), {})


@pytest.mark.parametrize("is_positional", [False, True], ids=["by keyword", "by position"])
def test_old_form_of_t2i_residuals_is_refused_before_any_module_runs(is_positional: bool) -> None:  # noqa: FBT001
    """A shallow step could not tell these residuals from those of a ControlNet."""
    model, (args, kwargs), ran = unet("sd-1.5"), inputs("sd-1.5"), []
    for module in model.modules():
        if not list(module.children()):
            module.register_forward_pre_hook(lambda *_: ran.append(1))
    residuals = list(OPTIONAL["T2I-Adapter"]("sd-1.5")[2]["down_intrablock_additional_residuals"])
    names = parameters(type(model))
    place = names.index("down_block_additional_residuals")
    if is_positional:
        args = (*args, *[None] * (place - len(args)), residuals)
    else:
        kwargs["down_block_additional_residuals"] = residuals
    with cached(model, interval=2), pytest.raises(UnsupportedUNetError, match="T2I-Adapter residuals"):
        model(*args, **kwargs)
    assert not ran
    assert len(residuals) == 4


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("ddpm-classes", {"class_labels": None}, "class_labels should be provided"),
        ("classes", {"class_labels": None}, "class_labels should be provided"),
        ("ddpm", {"class_labels": torch.tensor([1, 2])}, "class_embedding needs to be initialized"),
        ("sdxl", {"added_cond_kwargs": {}}, "text_embeds"),
    ],
)
def test_input_that_forward_refuses_gets_forwards_own_words(name: str, changes: dict[str, Any], message: str) -> None:
    model, (args, kwargs) = shared(name), inputs(name)
    for step in (model, lambda *a, **k: full_forward(model, Cut.of(model, 0), *a, **k)):
        with pytest.raises(ValueError, match=message):
            step(*args, **{**kwargs, **changes})


@pytest.mark.parametrize("name", ["ldm-4-g", "animatediff"])
def test_no_cross_attention_arguments_are_none(name: str) -> None:
    args, kwargs = inputs(name)
    assert_laws_of_kernel(shared(name), (0, 1), args, {**kwargs, "cross_attention_kwargs": {}})
