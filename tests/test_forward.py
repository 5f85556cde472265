"""Laws of the kernel. The oracle is the U-Net's own forward; the same operations run, so bit for bit."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from problems import NAMES, assert_full_and_shallow_equal_forward, branches_of, inputs, shared, unet

from deepcache.forward import full_forward, shallow_forward
from deepcache.stages import nest
from deepcache.views import Cut


@pytest.mark.parametrize(("name", "branch"), branches_of(NAMES))
def test_full_and_shallow_step_on_same_inputs_equal_forward(name: str, branch: int) -> None:
    args, kwargs = inputs(name)
    assert_full_and_shallow_equal_forward(shared(name), branch, args, kwargs)


@pytest.mark.parametrize(("name", "branch"), branches_of(("ddpm", "sd-1.5", "no-attention")))
def test_feature_is_what_enters_the_up_stage_of_its_branch(name: str, branch: int) -> None:
    """Oracle: in the U-Net's own forward, the branch's resnet from the end takes the feature beside its skip."""
    model, (args, kwargs), seen = unet(name), inputs(name), []
    resnet = [resnet for block in model.up_blocks for resnet in block.resnets][-1 - branch]
    resnet.register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    model(*args, **kwargs)
    _, (feature,) = full_forward(model, Cut.of(model, branch), *args, **kwargs)
    assert torch.equal(seen[0][:, : feature.shape[1]], feature)


@pytest.mark.parametrize(("name", "branch"), branches_of(("ddpm-attention", "sd-1.5", "ldm-4-g", "no-mid")))
def test_no_deep_stage_runs_on_a_shallow_step(name: str, branch: int) -> None:  # law 6
    model, (args, kwargs) = unet(name), inputs(name)
    cut, found = Cut.of(model, branch), nest(model)
    deep = {s.name for s in (*found.down[branch + 1 :], *found.up[branch + 1 :])} | {found.mid.name}
    calls: Counter[tuple[str, int]] = Counter()
    for stage in (*found.down, found.mid, *found.up):
        for i, module in enumerate(stage.modules):
            module.register_forward_hook(lambda *_, key=(stage.name, i): calls.update([key]))
    _, feature = full_forward(model, cut, *args, **kwargs)
    assert set(calls.values()) == {1}
    assert len(calls) == sum(len(stage.modules) for stage in (*found.down, found.mid, *found.up))
    calls.clear()
    shallow_forward(model, cut, feature, *args, **kwargs)
    assert set(calls.values()) == {1}
    assert not deep & {stage for stage, _ in calls}
    assert {s.name for s in (*found.down[: branch + 1], *found.up[: branch + 1])} == {stage for stage, _ in calls}


def test_broken_shallow_steps_differ() -> None:
    """Test of the test: a feature moved a little, of another branch, or of another step does not pass."""
    model, (args, kwargs), (other, _) = shared("ldm-4-g"), inputs("ldm-4-g"), inputs("ldm-4-g", timestep=300)
    cut, deeper = Cut.of(model, 0), Cut.of(model, 1)
    (full, (feature,)), (_, (wrong_branch,)) = (full_forward(model, at, *args, **kwargs) for at in (cut, deeper))
    _, (wrong_step,) = full_forward(model, cut, *other, **kwargs)
    assert wrong_branch.shape == feature.shape
    for broken in (feature + 1e-3, wrong_branch, wrong_step):
        assert not torch.equal(shallow_forward(model, cut, (broken,), *args, **kwargs).sample, full.sample)


@pytest.mark.parametrize("name", ["ddpm-classes", "classes"])
def test_positional_and_keyword_arguments_equal(name: str) -> None:
    args, kwargs = inputs(name)
    names = ("sample", "timestep", "encoder_hidden_states") if name == "classes" else ("sample", "timestep")
    model = shared(name)
    expected, _ = full_forward(model, Cut.of(model, 0), *args, **kwargs)
    by_keyword, _ = full_forward(model, Cut.of(model, 0), **dict(zip(names, args, strict=True)), **kwargs)
    by_position, _ = full_forward(model, Cut.of(model, 0), *args, kwargs["class_labels"])
    assert torch.equal(by_keyword.sample, expected.sample)
    assert torch.equal(by_position.sample, expected.sample)


@pytest.mark.parametrize("return_dict", [True, False])
@pytest.mark.parametrize("name", ["ddpm", "sd-1.5"])
def test_output_has_forwards_type(name: str, return_dict: bool) -> None:  # noqa: FBT001
    args, kwargs = inputs(name)
    model = shared(name)
    expected, cut = model(*args, **kwargs, return_dict=return_dict), Cut.of(model, 0)
    full, feature = full_forward(model, cut, *args, **kwargs, return_dict=return_dict)
    shallow = shallow_forward(model, cut, feature, *args, **kwargs, return_dict=return_dict)
    for output in (full, shallow):
        assert type(output) is type(expected)
        assert torch.equal(output[0], expected[0])


@pytest.mark.parametrize("name", NAMES)
def test_kernel_leaves_its_arguments_as_they_were(name: str) -> None:
    args, kwargs = inputs(name)
    model, cut = shared(name), Cut.of(shared(name), 0)
    _, feature = full_forward(model, cut, *args, **kwargs)
    kept = feature[0].clone()
    shallow_forward(model, cut, feature, *args, **kwargs)
    torch.testing.assert_close((args, kwargs), inputs(name), rtol=0, atol=0)
    assert torch.equal(feature[0], kept)
