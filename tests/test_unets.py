"""Every optional input of every family is supported, or refused by name; the oracle is the U-Net's own forward."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection
from problems import (
    CONTEXT_DIM,
    TOKENS,
    assert_full_and_shallow_equal_forward,
    inputs,
    num_branches,
    shared,
    staged,
    unet,
)
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


def _skip_shapes(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Size]:
    shapes: list[torch.Size] = []
    blocks = model.down_blocks
    for module in (model.conv_in, *(m for b in blocks for m in (*b.resnets, *(b.downsamplers or ())))):
        module.register_forward_hook(lambda _module, _args, output: shapes.append(output.shape))
    model(*args, **kwargs)
    return shapes


@pytest.mark.parametrize(("which", "name"), OPTIONAL)
def test_optional_input_keeps_laws_at_every_branch(which: str, name: str) -> None:
    args, kwargs = _optional_inputs(which, name)
    model = shared(name)
    for branch in range(num_branches(name)):
        assert_full_and_shallow_equal_forward(model, branch, args, kwargs)


@pytest.mark.parametrize(
    ("which", "name"), [case for case in OPTIONAL if case[0] in ("ControlNet", "context mask", "attention mask")]
)
def test_optional_input_matters(which: str, name: str) -> None:
    """Test of the test: an input that changes nothing would pass the one above unheard."""
    args, kwargs = _optional_inputs(which, name)
    model = shared(name).unet
    assert not torch.equal(model(*args, **kwargs).sample, model(*args).sample)


@pytest.mark.parametrize(
    ("name", "form"),
    [(name, form) for name in ("sd-1.5", "ddpm", "ddpm-fourier", "ddpm-learned") for form in TIMESTEPS][
        :-1  # a table of learned embeddings takes no fraction
    ],
)
def test_every_form_of_timestep_equals_forward(name: str, form: str) -> None:
    args, kwargs = inputs(name, timestep=TIMESTEPS[form])
    assert_full_and_shallow_equal_forward(shared(name), 1, args, kwargs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["ddpm-classes", "ddpm-fourier", "sdxl", "timestep-cond"])
def test_other_types_equal_forward(name: str, dtype: torch.dtype) -> None:
    (sample, *rest), kwargs = inputs(name)
    rest = [value.to(dtype) if isinstance(value, Tensor) else value for value in rest]
    kwargs = {k: v.to(dtype) if k == "timestep_cond" else v for k, v in kwargs.items()}
    assert_full_and_shallow_equal_forward(StagedUNet(unet(name).to(dtype)), 1, (sample.to(dtype), *rest), kwargs)


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
    model = staged("no-mid", **changes)
    for branch in range(num_branches("no-mid")):
        assert_full_and_shallow_equal_forward(model, branch, args, kwargs)


def test_ip_adapter_equals_forward_at_every_branch() -> None:
    model, (args, kwargs) = _with_ip_adapter(unet("sd-1.5")), inputs("sd-1.5")
    images = [torch.randn(2, 1, 6, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    kwargs["added_cond_kwargs"] = {"image_embeds": images[:1]}
    for branch in range(num_branches("sd-1.5")):
        assert_full_and_shallow_equal_forward(StagedUNet(model), branch, args, kwargs)
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
    assert_full_and_shallow_equal_forward(StagedUNet(model), 0, args, kwargs)


@pytest.mark.parametrize(("name", "labels"), [("ddpm-classes", None), ("ddpm", torch.tensor([1, 2]))])
def test_class_labels_come_exactly_where_the_unet_has_classes(name: str, labels: Tensor | None) -> None:
    args, _ = inputs(name)
    with pytest.raises(DeepCacheError, match="class_labels"):
        full_forward(shared(name), 0, *args, class_labels=labels)
