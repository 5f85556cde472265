"""Laws of the kernel.

The oracle is the U-Net's own forward; the same operations run, so that results are equal bit for bit.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from deepcache.unets.calls import parameters
from deepcache.unets.diffusers.forward import full_forward, shallow_forward
from deepcache.unets.diffusers.stages import nest
from deepcache.unets.diffusers.views import Cut
from tests.optional import TIMESTEPS
from tests.problems import (
    FRAMES,
    NAMES,
    assert_laws_of_kernel,
    branches_of,
    inputs,
    num_branches,
    shared,
    unet,
)

ONE_A_FAMILY = ("ddpm-classes", "ncsn++", "sdxl", "timestep-cond", "animatediff-sdxl", "modelscope", "svd", "i2vgen-xl")


@pytest.mark.parametrize("name", NAMES)
def test_full_and_shallow_step_on_same_inputs_equal_forward_at_every_branch(name: str) -> None:  # laws 1 and 2
    args, kwargs = inputs(name)
    assert_laws_of_kernel(shared(name), range(num_branches(name)), args, kwargs)


@pytest.mark.parametrize("name", [*ONE_A_FAMILY, "sd-1.5", "bk-sdm-small", "ddpm-resnet-samplers", "uneven-layers"])
def test_no_deep_stage_runs_on_a_shallow_step(name: str) -> None:  # law 6
    """Every live module runs as often as on a full step: once."""
    model, (args, kwargs) = unet(name), inputs(name, batch=1)
    found, calls = nest(model), Counter()
    for stage in (*found.down, found.mid, *found.up):
        for i, module in enumerate(stage.modules):
            module.register_forward_hook(lambda *_, key=(stage.name, i): calls.update([key]))
    model(*args, **kwargs)
    once = dict(calls)
    assert set(once.values()) == {1}
    assert {stage for stage, _ in once} == {s.name for s in (*found.down, found.mid, *found.up) if s.modules}
    for branch in sorted({0, num_branches(name) // 2, num_branches(name) - 1}):
        cut = Cut.of(model, branch)
        calls.clear()
        _, feature = full_forward(model, cut, *args, **kwargs)
        assert calls == once
        calls.clear()
        shallow_forward(model, cut, feature, *args, **kwargs)
        live = {s.name for s in (*found.down[: branch + 1], *found.up[: branch + 1])}
        assert calls == {key: 1 for key in once if key[0] in live}


@pytest.mark.parametrize(("name", "branch"), branches_of(("ddpm", "ncsn++", "bk-sdm-base", "no-attention")))
def test_feature_is_what_enters_the_up_stage_of_its_branch(name: str, branch: int) -> None:
    """The oracle is what enters the resnet of the branch, counted from the end, in the U-Net's own forward."""
    model, (args, kwargs), seen = unet(name), inputs(name), []
    resnet = [resnet for block in model.up_blocks for resnet in block.resnets][-1 - branch]
    resnet.register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    model(*args, **kwargs)
    _, (feature, *_) = full_forward(model, Cut.of(model, branch), *args, **kwargs)
    assert torch.equal(seen[0][:, : feature.shape[1]], feature)


def test_feature_between_skip_blocks_has_the_image_so_far() -> None:
    """Stored values: the first of three up blocks begins an image of half the size of the hidden state."""
    model, (args, kwargs) = shared("ncsn++"), inputs("ncsn++")
    features = [full_forward(model, Cut.of(model, branch), *args, **kwargs)[1] for branch in range(9)]
    assert [len(feature) for feature in features] == [2] * 6 + [1] * 3
    for hidden, image in features[:6]:
        assert image.shape == (2, 3, hidden.shape[2] // 2, hidden.shape[3] // 2)


@pytest.mark.parametrize("name", ["animatediff", "modelscope", "svd", "i2vgen-xl"])
def test_feature_of_a_video_has_its_frames_in_the_first_dimension(name: str) -> None:
    args, kwargs = inputs(name, batch=2)
    _, (feature,) = full_forward(shared(name), Cut.of(shared(name), 0), *args, **kwargs)
    assert feature.shape[0] == 2 * FRAMES


def test_broken_shallow_steps_differ() -> None:
    """Test of the test: a feature that is moved a little, or is of another branch or step, does not pass."""
    model, (args, kwargs), (other, _) = shared("ldm-4-g"), inputs("ldm-4-g"), inputs("ldm-4-g", timestep=300)
    cut, deeper = Cut.of(model, 0), Cut.of(model, 1)
    (full, (feature,)), (_, (wrong_branch,)) = (full_forward(model, at, *args, **kwargs) for at in (cut, deeper))
    _, (wrong_step,) = full_forward(model, cut, *other, **kwargs)
    assert wrong_branch.shape == feature.shape
    for broken in (feature + 1e-3, wrong_branch, wrong_step):
        assert not torch.equal(shallow_forward(model, cut, (broken,), *args, **kwargs).sample, full.sample)


@pytest.mark.parametrize("which", [0, 1], ids=["hidden state", "image"])
def test_broken_part_of_a_skip_blocks_feature_differs(which: int) -> None:
    """Test of the test: both tensors of the feature reach the output."""
    model, (args, kwargs) = shared("ncsn++"), inputs("ncsn++")
    cut = Cut.of(model, 0)
    full, feature = full_forward(model, cut, *args, **kwargs)
    broken = tuple(part + 1e-3 if i == which else part for i, part in enumerate(feature))
    assert not torch.equal(shallow_forward(model, cut, broken, *args, **kwargs).sample, full.sample)


@pytest.mark.parametrize("name", ONE_A_FAMILY)
def test_all_positional_and_all_keyword_arguments_equal_forward(name: str) -> None:
    args, kwargs = inputs(name, size=(4, 4))
    model, names = shared(name), parameters(type(shared(name)))
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    last = max(names.index(key) for key in given)
    for form in ((tuple(given.get(key) for key in names[: last + 1]), {}), ((), given)):
        assert_laws_of_kernel(model, (0, 1), *form)


@pytest.mark.parametrize("name", ONE_A_FAMILY)
@pytest.mark.parametrize("return_dict", [True, False])
def test_output_has_forwards_type(name: str, return_dict: bool) -> None:  # noqa: FBT001
    args, kwargs = inputs(name, size=(4, 4))
    model = shared(name)
    expected, cut = model(*args, **kwargs, return_dict=return_dict), Cut.of(model, 0)
    full, feature = full_forward(model, cut, *args, **kwargs, return_dict=return_dict)
    shallow = shallow_forward(model, cut, feature, *args, **kwargs, return_dict=return_dict)
    for output in (full, shallow):
        assert type(output) is type(expected)
        assert torch.equal(output[0], expected[0])


@pytest.mark.parametrize(
    ("name", "form"),
    [
        (name, form)
        for name in ("ddpm", "ddpm-fourier", "ddpm-learned", "bk-sdm-tiny", "animatediff", "modelscope", "svd")
        for form in TIMESTEPS
        if (name, form) != ("ddpm-learned", "0-d fraction")  # a table of learned embeddings takes no fraction
    ],
)
def test_every_form_of_timestep_equals_forward(name: str, form: str) -> None:
    args, kwargs = inputs(name, timestep=TIMESTEPS[form], size=(4, 4))
    assert_laws_of_kernel(shared(name), (1,), args, kwargs)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.bfloat16) for name in (*ONE_A_FAMILY, "ddpm-fourier", "deepfloyd-if")),
        *((name, torch.float64) for name in ("ddpm-fourier", "timestep-cond", "svd")),
    ],
    ids=str,
)
def test_other_types_equal_forward(name: str, dtype: torch.dtype) -> None:
    args, kwargs = _cast(inputs(name, size=(4, 4)), dtype)
    assert_laws_of_kernel(unet(name).to(dtype), (0, 1), args, kwargs)


@pytest.mark.parametrize("name", ONE_A_FAMILY)
def test_kernel_leaves_its_arguments_as_they_were(name: str) -> None:
    args, kwargs = inputs(name, size=(4, 4))
    model, cut = shared(name), Cut.of(shared(name), 0)
    _, feature = full_forward(model, cut, *args, **kwargs)
    shallow_forward(model, cut, feature, *args, **kwargs)
    torch.testing.assert_close((args, kwargs), inputs(name, size=(4, 4)), rtol=0, atol=0)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, dict):
        return {key: _cast(inner, dtype) for key, inner in value.items()}
    if isinstance(value, tuple):
        return tuple(_cast(inner, dtype) for inner in value)
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
