"""Laws of the kernel. The oracle is the U-Net's own forward; the same operations run, so bit for bit."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection
from problems import CONDITION_NAMES, CONTEXT_DIM, NAMES, TOKENS, branches_of, inputs, num_branches, staged, unet
from torch import Tensor, nn

from deepcache import DeepCacheError, UnsupportedUNetError
from deepcache.forward import full_forward, shallow_forward
from deepcache.unets import StagedUNet

TIMESTEPS = {
    "int": 701,
    "float": 701.0,
    "fraction": 701.75,
    "0-d": torch.tensor(701),
    "1-d": torch.tensor([701]),
    "of the batch": torch.tensor([701, 300]),
    "0-d fraction": torch.tensor(701.75),
}
ODD = (11, 14)  # three upsamplers make 8 the least common size


def _optional_inputs(which: str, name: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A condition U-Net's inputs with one optional input more."""
    args, kwargs = inputs(name, size=ODD if "odd" in which else (8, 8))
    generator = torch.Generator().manual_seed(1)
    if "ControlNet" in which:
        residuals = tuple(torch.randn(shape, generator=generator) for shape in _skip_shapes(unet(name), args, kwargs))
        kwargs["down_block_additional_residuals"] = None if "mid alone" in which else residuals
        kwargs["mid_block_additional_residual"] = torch.randn(residuals[-1].shape, generator=generator)
    if "context mask" in which:
        kwargs["encoder_attention_mask"] = torch.rand(2, TOKENS, generator=generator) > 0.5
    if "attention mask" in which:
        kwargs["attention_mask"] = torch.rand(2, 64, generator=generator) > 0.5
    if "no cross-attention arguments" in which:
        kwargs["cross_attention_kwargs"] = {}
    return args, kwargs


OPTIONAL = [
    ("ControlNet", "sd-1.5"),
    ("ControlNet", "no-mid"),
    ("ControlNet", "no-attention"),
    ("ControlNet's mid alone", "sd-1.5"),  # diffusers passes it over
    ("odd size", "sd-1.5"),
    ("odd size", "ldm-4-g"),
    ("odd size, ControlNet, context mask", "sd-1.5"),
    ("context mask", "sd-1.5"),
    ("attention mask", "no-mid"),  # 64 tokens wherever it attends
    ("no cross-attention arguments", "ldm-4-g"),
]


def _skip_shapes(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Size]:
    shapes: list[torch.Size] = []
    blocks = model.down_blocks
    for module in (model.conv_in, *(m for b in blocks for m in (*b.resnets, *(b.downsamplers or ())))):
        module.register_forward_hook(lambda _module, _args, output: shapes.append(output.shape))
    model(*args, **kwargs)
    return shapes


def _assert_full_and_shallow_equal_forward(
    model: nn.Module, branch: int, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    expected = model(*args, **kwargs).sample
    assert expected.isfinite().all()
    full, feature = full_forward(StagedUNet(model), branch, *args, **kwargs)
    shallow = shallow_forward(StagedUNet(model), branch, feature, *args, **kwargs)
    assert torch.equal(full.sample, expected)  # law 1
    assert torch.equal(shallow.sample, expected)  # law 2


@pytest.mark.parametrize(("name", "branch"), branches_of(NAMES))
def test_full_and_shallow_step_on_same_inputs_equal_forward(name: str, branch: int) -> None:
    args, kwargs = inputs(name)
    _assert_full_and_shallow_equal_forward(unet(name), branch, args, kwargs)


@pytest.mark.parametrize(("which", "name"), OPTIONAL)
def test_optional_input_keeps_laws_at_every_branch(which: str, name: str) -> None:
    args, kwargs = _optional_inputs(which, name)
    model = unet(name)
    for branch in range(num_branches(name)):
        _assert_full_and_shallow_equal_forward(model, branch, args, kwargs)


@pytest.mark.parametrize(("which", "name"), [case for case in OPTIONAL if case[0] in ("ControlNet", "context mask", "attention mask")])
def test_optional_input_matters(which: str, name: str) -> None:
    """Test of the test: an input that changes nothing would pass the one above unheard."""
    args, kwargs = _optional_inputs(which, name)
    assert not torch.equal(unet(name)(*args, **kwargs).sample, unet(name)(*args).sample)


@pytest.mark.parametrize("timestep", TIMESTEPS.values(), ids=TIMESTEPS)
@pytest.mark.parametrize("name", ["ddpm", "ddpm-fourier", "ddpm-learned", "sd-1.5"])
def test_every_form_of_timestep_equals_forward(name: str, timestep: Any) -> None:
    if name == "ddpm-learned" and isinstance(timestep, Tensor) and timestep.is_floating_point():
        pytest.skip("a table of learned embeddings takes whole timesteps alone")
    args, kwargs = inputs(name, timestep=timestep)
    _assert_full_and_shallow_equal_forward(unet(name), 1, args, kwargs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["ddpm-classes", "ddpm-fourier", "sdxl", "timestep-cond"])
def test_other_types_equal_forward(name: str, dtype: torch.dtype) -> None:
    (sample, *rest), kwargs = inputs(name)
    rest = [value.to(dtype) if isinstance(value, Tensor) else value for value in rest]
    kwargs = {k: v.to(dtype) if k == "timestep_cond" else v for k, v in kwargs.items()}
    _assert_full_and_shallow_equal_forward(unet(name).to(dtype), 1, (sample.to(dtype), *rest), kwargs)


@pytest.mark.parametrize("name", ["ddpm-classes", "classes"])
def test_positional_and_keyword_arguments_equal(name: str) -> None:
    args, kwargs = inputs(name)
    names = ("sample", "timestep", "encoder_hidden_states") if name == "classes" else ("sample", "timestep")
    model = staged(name)
    expected, _ = full_forward(model, 0, *args, **kwargs)
    by_keyword, _ = full_forward(model, 0, **dict(zip(names, args, strict=True)), **kwargs)
    by_position, _ = full_forward(model, 0, *args, kwargs["class_labels"])
    assert torch.equal(by_keyword.sample, expected.sample)
    assert torch.equal(by_position.sample, expected.sample)


@pytest.mark.parametrize("return_dict", [True, False])
@pytest.mark.parametrize("name", ["ddpm", "sd-1.5"])
def test_output_has_forwards_type(name: str, return_dict: bool) -> None:  # noqa: FBT001
    args, kwargs = inputs(name)
    expected = unet(name)(*args, **kwargs, return_dict=return_dict)
    full, feature = full_forward(staged(name), 0, *args, **kwargs, return_dict=return_dict)
    shallow = shallow_forward(staged(name), 0, feature, *args, **kwargs, return_dict=return_dict)
    for output in (full, shallow):
        assert type(output) is type(expected)
        assert torch.equal(output[0], expected[0])


@pytest.mark.parametrize(
    "changes",
    [
        {"encoder_hid_dim": CONTEXT_DIM, "encoder_hid_dim_type": "text_proj"},
        {"addition_embed_type": "text", "addition_embed_type_num_heads": 2},
        {"class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": 6},
        {"attention_type": "gated"},
        {"dual_cross_attention": False, "only_cross_attention": True, "time_embedding_type": "fourier"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_rare_configuration_equals_forward(changes: dict[str, Any]) -> None:
    args, kwargs = inputs("no-mid")
    if "class_embed_type" in changes:
        kwargs["class_labels"] = torch.randn(2, 6, generator=torch.Generator().manual_seed(1))
    model = unet("no-mid", **changes)
    for branch in range(num_branches("no-mid")):
        _assert_full_and_shallow_equal_forward(model, branch, args, kwargs)


def test_ip_adapter_equals_forward_at_every_branch() -> None:
    model, (args, kwargs) = _with_ip_adapter(unet("sd-1.5")), inputs("sd-1.5")
    images = [torch.randn(2, 1, 6, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    kwargs["added_cond_kwargs"] = {"image_embeds": images[:1]}
    for branch in range(num_branches("sd-1.5")):
        _assert_full_and_shallow_equal_forward(model, branch, args, kwargs)
    other = model(*args, added_cond_kwargs={"image_embeds": images[1:]}).sample
    assert not torch.equal(other, model(*args, **kwargs).sample)


def _with_ip_adapter(model: nn.Module) -> nn.Module:
    """As `load_ip_adapter` leaves a U-Net."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        processors = dict(model.attn_processors)
        for key in processors:
            if "attn2" in key:
                width = model.get_submodule(key.removesuffix(".processor")).inner_dim
                processors[key] = IPAdapterAttnProcessor2_0(width, CONTEXT_DIM, num_tokens=(2,))
        model.set_attn_processor(processors)
        projection = ImageProjection(cross_attention_dim=CONTEXT_DIM, image_embed_dim=6, num_image_text_embeds=2)
        model.encoder_hid_proj = MultiIPAdapterImageProjection([projection])
    model.config.encoder_hid_dim_type = "ip_image_proj"
    return model.eval().requires_grad_(requires_grad=False)


@pytest.mark.parametrize(("name", "branch"), branches_of(("ddpm", "sd-1.5", "no-attention")))
def test_feature_is_what_enters_the_up_stage_of_its_branch(name: str, branch: int) -> None:
    """Oracle: in the U-Net's own forward, the branch's resnet from the end takes the feature beside its skip."""
    model, (args, kwargs), seen = unet(name), inputs(name), []
    resnet = [resnet for block in model.up_blocks for resnet in block.resnets][-1 - branch]
    resnet.register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    model(*args, **kwargs)
    _, feature = full_forward(StagedUNet(model), branch, *args, **kwargs)
    assert torch.equal(seen[0][:, : feature.shape[1]], feature)


@pytest.mark.parametrize(("name", "branch"), branches_of(("ddpm-attention", "sd-1.5", "ldm-4-g", "no-mid")))
def test_no_deep_stage_runs_on_a_shallow_step(name: str, branch: int) -> None:  # law 6
    model, (args, kwargs) = staged(name), inputs(name)
    nest = model.nest
    deep = {s.name for s in (*nest.down[branch + 1 :], *nest.up[branch + 1 :])} | {nest.mid.name}
    calls: Counter[tuple[str, int]] = Counter()
    for stage in (*nest.down, nest.mid, *nest.up):
        for i, module in enumerate(stage.modules):
            module.register_forward_hook(lambda *_, key=(stage.name, i): calls.update([key]))
    _, feature = full_forward(model, branch, *args, **kwargs)
    assert set(calls.values()) == {1}
    assert len(calls) == sum(len(stage.modules) for stage in (*nest.down, nest.mid, *nest.up))
    calls.clear()
    shallow_forward(model, branch, feature, *args, **kwargs)
    assert set(calls.values()) == {1}
    assert not deep & {stage for stage, _ in calls}
    assert {s.name for s in (*nest.down[: branch + 1], *nest.up[: branch + 1])} == {stage for stage, _ in calls}


def test_broken_shallow_steps_differ() -> None:
    """Test of the test: a feature moved a little, of another branch, or of another step does not pass."""
    model, (args, kwargs), (other, _) = staged("ldm-4-g"), inputs("ldm-4-g"), inputs("ldm-4-g", timestep=300)
    (full, feature), (_, wrong_branch) = (full_forward(model, branch, *args, **kwargs) for branch in (0, 1))
    _, wrong_step = full_forward(model, 0, *other, **kwargs)
    assert wrong_branch.shape == feature.shape
    for broken in (feature + 1e-3, wrong_branch, wrong_step):
        assert not torch.equal(shallow_forward(model, 0, broken, *args, **kwargs).sample, full.sample)


@pytest.mark.parametrize("is_full", [True, False], ids=["full", "shallow"])
@pytest.mark.parametrize(
    ("refused", "kwargs"),
    [
        ("T2I-Adapter", {"down_intrablock_additional_residuals": [torch.zeros(2, 8, 8, 8)]}),
        ("without mid_block", {"down_block_additional_residuals": (torch.zeros(2, 8, 8, 8),)}),  # T2I-Adapter's old way
        ("GLIGEN", {"cross_attention_kwargs": {"gligen": {}}}),
        ("LoRA scale", {"cross_attention_kwargs": {"scale": 0.5}}),
        ("FreeU", {}),
        ("image hint", {}),
    ],
)
def test_unknown_input_is_refused_before_any_module_runs(is_full: bool, refused: str, kwargs: dict[str, Any]) -> None:  # noqa: FBT001
    hint = {"addition_embed_type": "image_hint", "encoder_hid_dim": 8} if refused == "image hint" else {}
    model, (args, _), calls = unet("sd-1.5", **hint), inputs("sd-1.5"), []
    if refused == "FreeU":
        model.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    found = StagedUNet(model)
    for module in model.modules():
        module.register_forward_pre_hook(lambda *_: calls.append(1))
    step = full_forward if is_full else partial(shallow_forward, feature=torch.zeros(2, 8, 8, 8))
    with pytest.raises(UnsupportedUNetError, match=refused):
        step(found, 0, **dict(zip(("sample", "timestep", "encoder_hidden_states"), args, strict=True)), **kwargs)
    assert not calls


def test_freeu_switched_off_again_is_accepted() -> None:
    model, (args, kwargs) = unet("sd-1.5"), inputs("sd-1.5")
    model.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    model.disable_freeu()
    _assert_full_and_shallow_equal_forward(model, 0, args, kwargs)


@pytest.mark.parametrize(("name", "labels"), [("ddpm-classes", None), ("ddpm", torch.tensor([1, 2]))])
def test_class_labels_come_exactly_where_the_unet_has_classes(name: str, labels: Tensor | None) -> None:
    args, _ = inputs(name)
    with pytest.raises(DeepCacheError, match="class_labels"):
        full_forward(staged(name), 0, *args, class_labels=labels)


@pytest.mark.parametrize("name", CONDITION_NAMES)
def test_kernel_leaves_its_arguments_as_they_were(name: str) -> None:
    args, kwargs = _optional_inputs("context mask", name)
    again = _optional_inputs("context mask", name)
    _, feature = full_forward(staged(name), 0, *args, **kwargs)
    kept = feature.clone()
    shallow_forward(staged(name), 0, feature, *args, **kwargs)
    torch.testing.assert_close((args, kwargs), again, rtol=0, atol=0)
    assert torch.equal(feature, kept)
