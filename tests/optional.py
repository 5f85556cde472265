"""Optional inputs of U-Nets by name, which users add to a plain call; diffusers' and peft's classes make them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from diffusers import ControlNetModel, MultiControlNetModel, T2IAdapter
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection
from peft import LoraConfig
from torch import Tensor, nn

from tests.problems import CONTEXT_DIM, TOKENS, inputs, shared, unet

Call = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]  # a U-Net and the arguments of its forward
ODD = (11, 14)  # three upsamplers make 8 the least common size
TIMESTEPS: dict[str, Any] = {
    "int": 701,
    "float": 701.0,
    "0-d": torch.tensor(701),
    "1-d": torch.tensor([701]),
    "of the batch": torch.tensor([701, 300]),
    "fraction": 701.75,
    "0-d fraction": torch.tensor(701.75),
}


def controlnet(name: str, *, seed: int = 0) -> Call:
    return _controlled(name, seed, num_nets=1)


def two_controlnets(name: str, *, seed: int = 0) -> Call:
    return _controlled(name, seed, num_nets=2)


def made_residuals(name: str, *, seed: int = 0) -> Call:
    """Return residuals for U-Nets for which diffusers has no ControlNet: one for each skip, of its shape."""
    args, kwargs = inputs(name)
    noise = _noise(seed)
    *down, mid = (noise(*shape) for shape in _skip_shapes(name))
    return shared(name), args, {**kwargs, **_residuals((*down, mid), noise(*mid.shape))}


def residuals_at_odd_size(name: str, *, seed: int = 0) -> Call:
    model, args, kwargs = odd_size(name)
    noise = _noise(seed)
    *down, mid = (noise(*shape) for shape in _skip_shapes(name, size=ODD))
    mask = {"encoder_attention_mask": noise(2, TOKENS) > 0}
    return model, args, {**kwargs, **_residuals((*down, mid), noise(*mid.shape)), **mask}


def t2i_adapter(name: str, *, seed: int = 0) -> Call:
    args, kwargs = inputs(name)
    channels = list(shared(name).config.block_out_channels)
    adapter = _random(lambda: T2IAdapter(3, channels, num_res_blocks=1, downscale_factor=1), seed)
    return shared(name), args, {**kwargs, **_adapted(adapter, _noise(seed)(2, 3, 8, 8))}


def t2i_adapter_xl(name: str, *, seed: int = 0) -> Call:
    """The last residual of this adapter is that of the mid block."""
    args, kwargs = inputs(name)
    channels = [*shared(name).config.block_out_channels, shared(name).config.block_out_channels[-1]]
    build = lambda: T2IAdapter(3, channels, 1, downscale_factor=2, adapter_type="full_adapter_xl")  # noqa: E731
    return shared(name), args, {**kwargs, **_adapted(_random(build, seed), _noise(seed)(2, 3, 8, 8))}


def controlnet_and_adapter(name: str, *, seed: int = 0) -> Call:
    model, args, kwargs = controlnet(name, seed=seed)
    return model, args, {**kwargs, **t2i_adapter(name, seed=seed)[2]}


def ip_adapter(name: str, *, seed: int = 0) -> Call:
    args, kwargs = inputs(name)
    added = {**kwargs.pop("added_cond_kwargs", {}), "image_embeds": [_noise(seed)(2, 1, 6)]}
    return _with_ip_adapter(name), args, {**kwargs, "added_cond_kwargs": added}


def ip_adapter_masks(name: str, *, seed: int = 0) -> Call:
    model, args, kwargs = ip_adapter(name)
    masks = (_noise(seed)(1, 1, 8, 8) > 0).float()
    return model, args, {**kwargs, "cross_attention_kwargs": {"ip_adapter_masks": [masks]}}


def lora(name: str, *, seed: int = 0) -> Call:
    args, kwargs = inputs(name)
    return _with_lora(name, seed), args, kwargs


def lora_scale(name: str, *, seed: int = 0) -> Call:
    model, args, kwargs = lora(name)
    return model, args, {**kwargs, "cross_attention_kwargs": {"scale": 0.5 / (1 + seed)}}


def freeu(name: str, *, seed: int = 0) -> Call:
    args, kwargs = inputs(name)
    model = unet(name)
    model.enable_freeu(s1=0.9, s2=0.2, b1=1.2 + seed, b2=1.4 + seed)
    return model, args, kwargs


def context_mask(name: str, *, seed: int = 0) -> Call:
    args, kwargs = inputs(name)
    return shared(name), args, {**kwargs, "encoder_attention_mask": _noise(seed)(2, TOKENS) > 0}


def attention_mask(name: str, *, seed: int = 0) -> Call:
    """Mask as many tokens as there are in every attention layer of a U-Net that attends at one level."""
    args, kwargs = inputs(name)
    return shared(name), args, {**kwargs, "attention_mask": _noise(seed)(2, 64) > 0}


def class_labels(name: str, *, seed: int = 0) -> Call:
    args, kwargs = inputs(name)
    return shared(name), args, {**kwargs, "class_labels": kwargs["class_labels"] + seed}


def timestep_cond(name: str, *, seed: int = 0) -> Call:
    args, kwargs = inputs(name)
    return shared(name), args, {**kwargs, "timestep_cond": _noise(seed)(2, 6)}


def added_conditions(name: str, *, seed: int = 0) -> Call:
    args, _ = inputs(name)
    return shared(name), args, inputs(name, seed=seed)[1]


def gligen(name: str, *, seed: int = 0) -> Call:
    args, kwargs = inputs(name)
    noise = _noise(seed)
    objects = {
        "boxes": noise(2, 3, 4).sigmoid(),
        "positive_embeddings": noise(2, 3, CONTEXT_DIM),
        "masks": torch.tensor([[1.0, 1.0, 0.0]] * 2),
    }
    return _with_gligen(name), args, {**kwargs, "cross_attention_kwargs": {"gligen": objects}}


def image_hint(name: str, *, seed: int = 0) -> Call:
    args, kwargs = inputs(name)
    noise = _noise(seed)
    added = {"image_embeds": noise(2, CONTEXT_DIM), "hint": noise(2, 3, 64, 64)}
    return _with_hint(name), args, {**kwargs, "added_cond_kwargs": added}


def odd_size(name: str, *, seed: int = 0) -> Call:
    args, kwargs = inputs(name, size=ODD, seed=seed)
    return shared(name), args, kwargs


# name of an optional input: a U-Net of a problem's topology that has it, with the arguments of a call
OPTIONAL: dict[str, Callable[..., Call]] = {
    "ControlNet": controlnet,
    "two ControlNets": two_controlnets,
    "ControlNet's residuals": made_residuals,
    "ControlNet, context mask, odd size": residuals_at_odd_size,
    "T2I-Adapter": t2i_adapter,
    "T2I-Adapter XL": t2i_adapter_xl,
    "ControlNet and T2I-Adapter": controlnet_and_adapter,
    "IP-Adapter": ip_adapter,
    "IP-Adapter masks": ip_adapter_masks,
    "LoRA": lora,
    "LoRA scale": lora_scale,
    "FreeU": freeu,
    "context mask": context_mask,
    "attention mask": attention_mask,
    "class labels": class_labels,
    "timestep condition": timestep_cond,
    "added conditions": added_conditions,
    "GLIGEN": gligen,
    "image hint": image_hint,
    "odd size": odd_size,
}
# the problems on which each is tried
TRIED: dict[str, tuple[str, ...]] = {
    "ControlNet": ("sd-1.5", "sd-inpainting", "sdxl", "no-attention"),
    "two ControlNets": ("sd-1.5", "sdxl"),
    "ControlNet's residuals": ("bk-sdm-small", "animatediff", "modelscope"),
    "ControlNet, context mask, odd size": ("sd-1.5",),
    "T2I-Adapter": ("sd-1.5", "bk-sdm-tiny"),
    "T2I-Adapter XL": ("sdxl",),
    "ControlNet and T2I-Adapter": ("sd-1.5",),
    "IP-Adapter": ("sd-1.5", "sdxl", "animatediff"),
    "IP-Adapter masks": ("sd-1.5",),
    "LoRA": ("sd-1.5", "sdxl", "animatediff"),
    "LoRA scale": ("sd-1.5", "animatediff"),
    "FreeU": ("sd-1.5", "sdxl", "bk-sdm-base", "animatediff", "modelscope", "i2vgen-xl"),
    "context mask": ("sd-1.5", "deepfloyd-if"),
    "attention mask": ("no-mid",),
    "class labels": ("ddpm-classes", "ddpm-timestep-classes", "classes", "concatenated-classes"),
    "timestep condition": ("timestep-cond",),
    "added conditions": ("sdxl", "animatediff-sdxl", "kandinsky-2.2"),
    "GLIGEN": ("sd-1.5",),
    "image hint": ("kandinsky-2.2",),
    "odd size": ("sd-1.5", "ldm-4-g", "bk-sdm-tiny", "animatediff", "modelscope", "svd", "i2vgen-xl"),
}
PAIRS = [(which, name) for which, names in TRIED.items() for name in names]


def _noise(seed: int) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(1 + seed)
    return lambda *shape: torch.randn(shape, generator=generator)


def _random(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Draw weights from a seed, none of them zero: a fresh adapter has zeros, and would change nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build().eval().requires_grad_(requires_grad=False)
        for weight in model.parameters():
            weight.copy_(weight + 0.1 * torch.randn_like(weight))
    return model


def _residuals(down: tuple[Tensor, ...], mid: Tensor) -> dict[str, Any]:
    return {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}


def _controlled(name: str, seed: int, *, num_nets: int) -> Call:
    args, kwargs = inputs(name)
    model, noise = shared(name), _noise(seed)
    nets = [
        _random(
            lambda: ControlNetModel.from_unet(
                model, conditioning_embedding_out_channels=(8, 16), load_weights_from_unet=False
            ),
            10 * seed + i,
        )
        for i in range(num_nets)
    ]
    images, scales = [noise(2, 3, 16, 16) for _ in nets], [1.0, 0.5][:num_nets]
    net = MultiControlNetModel(nets)
    return model, args, {**kwargs, **_residuals(*net(*args, images, scales, **kwargs, return_dict=False))}


@cache
def _skip_shapes(name: str, size: tuple[int, int] = (8, 8)) -> list[torch.Size]:
    model, shapes = unet(name), []
    for module in (model.conv_in, *(m for b in model.down_blocks for m in (*b.resnets, *(b.downsamplers or ())))):
        module.register_forward_hook(lambda _module, _args, output: shapes.append(output.shape))
    args, kwargs = inputs(name, size=size)
    model(*args, **kwargs)
    return shapes


def _adapted(adapter: nn.Module, image: Tensor) -> dict[str, Any]:
    return {"down_intrablock_additional_residuals": list(adapter(image))}


def _with_ip_adapter(name: str) -> nn.Module:
    """Bring a U-Net into the state in which `load_ip_adapter` leaves it."""
    model = unet(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        processors = dict(model.attn_processors)
        for key in processors:
            if "attn2" in key and "motion_modules" not in key:
                width = model.get_submodule(key.removesuffix(".processor")).inner_dim
                processors[key] = IPAdapterAttnProcessor2_0(width, CONTEXT_DIM, num_tokens=(2,))
        model.set_attn_processor(processors)
        projection = ImageProjection(cross_attention_dim=CONTEXT_DIM, image_embed_dim=6, num_image_text_embeds=2)
        model.encoder_hid_proj = MultiIPAdapterImageProjection([projection])
    model.config.encoder_hid_dim_type = "ip_image_proj"
    return model.eval().requires_grad_(requires_grad=False)


def _with_lora(name: str, seed: int) -> nn.Module:
    """Add LoRA to attention, feed-forward layers, resnets and the first convolution."""
    model, targets = unet(name), ["to_q", "to_v", "to_out.0", "ff.net.2", "conv1", "conv_in"]
    config = LoraConfig(r=2, lora_alpha=4, target_modules=targets, init_lora_weights=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.add_adapter(config)
    return model.eval().requires_grad_(requires_grad=False)


def _with_gligen(name: str) -> nn.Module:
    model = unet(name, attention_type="gated")
    for module in model.modules():
        if hasattr(module, "alpha_attn"):  # zero at first, which would shut the gates
            module.alpha_attn.fill_(0.7)
            module.alpha_dense.fill_(0.7)
    return model


@cache
def _with_hint(name: str) -> nn.Module:
    return unet(name, addition_embed_type="image_hint", in_channels=8)
