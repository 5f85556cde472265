"""Small random U-Nets by name with example inputs, a tiny pipeline, and a plain denoising loop for the tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    I2VGenXLUNet,
    PNDMScheduler,
    UNet2DConditionModel,
    UNet2DModel,
    UNetMotionModel,
    UNetSpatioTemporalConditionModel,
    VQModel,
)
from torch import Tensor, nn

from deepcache.models.class_conditional import ClassConditionalPipeline, ClassEmbedder
from deepcache.unets.diffusers.forward import full_forward, shallow_forward
from deepcache.unets.diffusers.views import Cut
from deepcache.unets.output import Form
from tests.topologies import CONTEXT_DIM, PROBLEMS, blocks

torch.set_num_threads(1)  # on models this small, threads wait for each other

TOKENS, FRAMES = 5, 3
NAMES = tuple(PROBLEMS)
TWO_LEVELS = {  # of one layer each: four branches
    **blocks("DownBlock2D", "CrossAttnDownBlock2D"),
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "attention_head_dim": (1, 2),
}
TIMESTEPS = torch.tensor([900, 700, 500, 300, 100])
SCHEDULERS: dict[str, Callable[[], Any]] = {
    "ddim": DDIMScheduler,
    "plms": lambda: PNDMScheduler(skip_prk_steps=True),
    "pndm": PNDMScheduler,
    "dpm-solver++": DPMSolverMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "heun": HeunDiscreteScheduler,
}


def unet(name: str, *, seed: int = 0, **changes: Any) -> nn.Module:
    """The same random weights for the same name and seed; `changes` go into the configuration."""
    kind, config, _ = PROBLEMS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(**{**config, **changes}).eval().requires_grad_(requires_grad=False)


def small_unet() -> nn.Module:
    """One level of two layers, which make three branches: for tests of the steps' order, and of the compiler."""
    return unet("ddpm-no-mid", block_out_channels=(8,), layers_per_block=2, **blocks("DownBlock2D"))


@cache
def shared(name: str) -> nn.Module:
    """One U-Net for all tests that only run it: no hooks, no `cached`."""
    return unet(name)


@cache
def num_branches(name: str) -> int:
    """Counted without the library: `conv_in`, every resnet of the down side and every downsampler push a skip."""
    return 1 + sum(len(block.resnets) + len(block.downsamplers or ()) for block in shared(name).down_blocks)


def branches_of(names: tuple[str, ...]) -> list[tuple[str, int]]:
    return [(name, branch) for name in names for branch in range(num_branches(name))]


def inputs(
    name: str, *, seed: int = 0, batch: int = 2, size: tuple[int, int] = (8, 8), timestep: Any = 701
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of the U-Net's `forward`."""
    kind, config, extra = PROBLEMS[name]
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    channels = config.get("in_channels", 3 if kind is UNet2DModel else 4)
    args: tuple[Any, ...]
    if kind is UNet2DModel:
        args = (noise(batch, channels, *size), timestep)
    elif kind is UNet2DConditionModel:
        args = (noise(batch, channels, *size), timestep, noise(batch, TOKENS, CONTEXT_DIM))
    elif kind is UNetSpatioTemporalConditionModel:  # the image's latents beside the frames'
        args = (noise(batch, FRAMES, 8, *size), timestep, noise(batch, 1, CONTEXT_DIM), noise(batch, 3))
    else:
        rows = batch * FRAMES if kind is UNetMotionModel else batch
        video, context = noise(batch, channels, FRAMES, *size), noise(rows, TOKENS, CONTEXT_DIM)
        image = (torch.full((batch,), 16), noise(*video.shape), noise(batch, CONTEXT_DIM))
        args = (video, timestep, *(image if kind is I2VGenXLUNet else ()), context)
    return args, extra(noise, batch)


def twice(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """A call's timestep two times, as elements of one tensor: two steps, told apart by their places."""
    timestep = kwargs["timestep"] if "timestep" in kwargs else args[1]
    if isinstance(timestep, float) and isinstance(model, UNet2DModel):
        timestep = int(timestep)  # as its forward cuts a number
    dtype = torch.float64 if isinstance(timestep, float) else None
    return torch.stack([torch.as_tensor(timestep, dtype=dtype)] * 2)


def at(timestep: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call's arguments with another timestep."""
    if "timestep" in kwargs:
        return args, {**kwargs, "timestep": timestep}
    return (args[0], timestep, *args[2:]), kwargs


def pipeline(scheduler: Any = None, *, seed: int = 0) -> ClassConditionalPipeline:
    """A tiny class-conditional latent pipeline; ask it for `output_type="latent"`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vqvae = VQModel(in_channels=3, block_out_channels=(4,), norm_num_groups=4, latent_channels=4, vq_embed_dim=4)
        embedder = ClassEmbedder(num_classes=3, embedding_dim=CONTEXT_DIM)
    pipe = ClassConditionalPipeline(vqvae, unet("ldm-4-g", **TWO_LEVELS), embedder, scheduler or DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents(
    pipe: ClassConditionalPipeline, *, num_steps: int = 5, seed: int = 0, labels: tuple[int, ...] = (0, 2)
) -> Tensor:
    """What the pipeline samples from a seed, before decoding."""
    generator = torch.Generator().manual_seed(seed)
    return pipe(labels, num_steps, generator=generator, output_type="latent").images


def loop(model: nn.Module, timesteps: Tensor = TIMESTEPS, *, seed: int = 0) -> Tensor:
    """A loop of its own on the U-Net "ddpm", without a scheduler."""
    sample, _ = inputs("ddpm", seed=seed)[0]
    for t in timesteps:
        sample = sample - 0.3 * model(sample, t).sample
    return sample


def denoise(pipe: Any, num_steps: int, *, name: str, seed: int = 0) -> Tensor:
    """A loop over `pipe.scheduler` and `pipe.unet` alone, called as diffusers' pipelines call them."""
    (sample, _, *rest), kwargs = inputs(name, seed=seed)
    pipe.scheduler.set_timesteps(num_steps)
    for t in pipe.scheduler.timesteps:
        noise = pipe.unet(sample, t, *rest, **kwargs).sample
        sample = pipe.scheduler.step(noise, t, sample).prev_sample
    return sample


def assert_laws_of_kernel(
    model: nn.Module, branches: Iterable[int], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Laws 1 and 2, bit for bit, and a feature that stays as it is; each call with its own lists of inputs."""
    expected = model(*deepcopy(args), **deepcopy(kwargs)).sample
    assert expected.isfinite().all()
    for branch in branches:
        cut = Cut.of(model, branch)
        full, feature = full_forward(model, cut, *deepcopy(args), **deepcopy(kwargs))
        kept = [part.clone() for part in feature]
        shallow = shallow_forward(model, cut, feature, *deepcopy(args), **deepcopy(kwargs))
        assert torch.equal(full.sample, expected), f"a full step differs from forward at branch {branch}"
        assert torch.equal(shallow.sample, expected), f"a shallow step differs from forward at branch {branch}"
        assert all(map(torch.equal, feature, kept)), f"a shallow step changes its feature at branch {branch}"


class Aborted(Exception):  # noqa: N818
    """Stands for a user who stops a generation."""


@contextmanager
def aborting(model: nn.Module, call: int) -> Iterator[None]:
    """Inside the block, call number `call` of the U-Net stops before its last convolution, or as an idle step ends."""
    calls = iter(range(100))

    def stop(*_: Any) -> None:
        if next(calls) == call:
            raise Aborted

    def output(form: Form, tensors: Any) -> Any:
        stop()
        return form_output(form, tensors)

    form_output = Form.output
    with model.conv_out.register_forward_pre_hook(stop), patch.object(Form, "output", output):
        yield
