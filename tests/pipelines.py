"""Small random diffusers pipelines by name, each with its conditions, and diffusers' schedulers with their options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import diffusers
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, LCMScheduler, UNetControlNetXSModel
from peft import LoraConfig
from torch import Tensor

from deepcache.models.class_conditional import ClassConditionalPipeline, ClassEmbedder
from tests import components as small
from tests.components import image, noise, text
from tests.problems import CONTEXT_DIM


@dataclass(frozen=True)
class Workload:
    """A pipeline with its conditions.

    Attributes:
        pipe: the pipeline.
        conditions: the arguments of a call.
        guidance: the name of the argument for the guidance scale; None if the pipeline has no guidance.
        several: arguments that make the pipeline sample two at once; None if the pipeline cannot.
        parts: how many parts guidance makes of a batch.
        calls: U-Net calls of a step.
        network: the attribute of the pipeline that is cached; a network that is not `unet` is cached on its own.
        steps: the name of the argument for the number of steps of that network.
    """

    pipe: Any
    conditions: Mapping[str, Any] = field(default_factory=dict)
    guidance: str | None = "guidance_scale"
    several: Mapping[str, Any] | None = field(default_factory=lambda: {"num_images_per_prompt": 2})
    parts: int = 2
    calls: int = 1
    network: str = "unet"
    steps: str = "num_inference_steps"

    @property
    def unet(self) -> Any:
        return getattr(self.pipe, self.network)

    @property
    def owner(self) -> Any:
        """What the tests pass to `cached`."""
        return self.pipe if self.network == "unet" else self.unet

    def run(self, num_steps: int = 5, seed: int = 0, *, guided: bool = True, **changes: Any) -> Tensor:
        """Return what the pipeline samples from a seed, before decoding; `changes` go into the conditions."""
        scale = {self.guidance: 5.0 if guided else 1.0} if self.guidance else {}
        conditions = {"output_type": "latent", **self.conditions, **scale, **changes}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # some pipelines do not hand their generator to the scheduler
            generator = torch.Generator().manual_seed(seed)
            output = self.pipe(**{self.steps: num_steps}, generator=generator, **conditions)
        return torch.as_tensor(output.frames if hasattr(output, "frames") else output.images)

    def pattern(self, num_calls: int, interval: int, also_full: Iterable[int] = ()) -> list[int]:
        """Return what `counted` finds if steps 0, N, 2N, ... and those of `also_full` are full."""
        steps = (call // self.calls for call in range(num_calls))
        return [int(step % interval == 0 or step in also_full) for step in steps]


@contextmanager
def counted(unet: Any) -> Iterator[list[int]]:
    """Yield a list that gets one entry for each U-Net call: how often the mid block ran in the call."""
    ran: list[int] = []

    def count(*_: Any) -> None:
        ran[-1] += 1

    first = unet.base_conv_in if isinstance(unet, UNetControlNetXSModel) else unet.conv_in
    with first.register_forward_hook(lambda *_: ran.append(0)), unet.mid_block.register_forward_hook(count):
        yield ran


def workload(name: str, scheduler: Any = None) -> Workload:
    """Return a new pipeline with its own scheduler around weights that all tests share."""
    made = _built(name)
    pipe = copy(made.pipe)
    if made.network == "unet":
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config) if scheduler is None else scheduler
    return replace(made, pipe=pipe)


@cache
def _built(name: str) -> Workload:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = _BUILDERS[name]()
    made.pipe.set_progress_bar_config(disable=True)
    return made


def _pipe(kind: str, **components: Any) -> Any:
    """Return a pipeline of Stable Diffusion's components and the given ones."""
    absent = small.no("text_encoder", "tokenizer", "safety_checker", "feature_extractor")
    made = {"unet": small.unet(), "vae": small.vae(), "scheduler": small.ddim(), "requires_safety_checker": False}
    return getattr(diffusers, kind)(**{**absent, **made, **components})


def _stable(kind: str = "StableDiffusionPipeline", unet: Any = None, parts: int = 2, **conditions: Any) -> Workload:
    return Workload(_pipe(kind, unet=unet or small.unet()), {**text(), **conditions}, parts=parts)


def _from_image(work: Workload) -> Workload:
    """Return the workload with an image; sampling two at once needs two images."""
    conditions = {**work.conditions, "image": image()}
    return replace(work, conditions=conditions, several={"num_images_per_prompt": 2, "image": image(2)})


def _inpaint(in_channels: int) -> Workload:
    unet = small.unet(in_channels=in_channels)
    given = {"image": image(), "mask_image": small.mask(), "strength": 0.8}
    return _stable("StableDiffusionInpaintPipeline", unet, **given)


def _controlled(num_nets: int) -> Workload:
    nets, images = [small.controlnet() for _ in range(num_nets)], [image()] * num_nets
    pipe = _pipe("StableDiffusionControlNetPipeline", controlnet=nets if num_nets > 1 else nets[0])
    return Workload(pipe, {**text(), "image": images if num_nets > 1 else images[0]})


def _controlled_from_image() -> Workload:
    pipe = _pipe("StableDiffusionControlNetImg2ImgPipeline", controlnet=small.controlnet())
    return _from_image(Workload(pipe, {**text(), "control_image": image(), "strength": 0.8}))


def _controlled_inside() -> Workload:
    """Return ControlNet-XS, whose U-Net has a class of its own."""
    base = small.unet(layers_per_block=2)
    net = diffusers.ControlNetXSAdapter.from_unet(base, size_ratio=0.5, conditioning_embedding_out_channels=(4,))
    unet = small.random(UNetControlNetXSModel.from_unet(base, net))
    pipe = _pipe("StableDiffusionControlNetXSPipeline", unet=unet, controlnet=net)
    return Workload(pipe, {**text(), "image": image()})


def _adapted() -> Workload:
    pipe = _pipe("StableDiffusionAdapterPipeline", adapter=small.adapter())
    return Workload(pipe, {**text(), "image": image()})


def _panorama() -> Workload:
    """Return a panorama of two overlapping views, which makes two U-Net calls in a step."""
    work = _stable("StableDiffusionPanoramaPipeline", height=32, width=8 * 72)
    work.pipe.vae_scale_factor = 8
    return replace(work, calls=2)


def _consistent() -> Workload:
    """Return a pipeline that guides by an input of the U-Net instead of a second half of the batch."""
    pipe = _pipe("LatentConsistencyModelPipeline", unet=small.unet(time_cond_proj_dim=6))
    pipe.scheduler = LCMScheduler(original_inference_steps=10)
    return Workload(pipe, {"prompt_embeds": text()["prompt_embeds"]}, parts=1)


def _xl(kind: str = "StableDiffusionXLPipeline", more: Mapping[str, Any] | None = None, **conditions: Any) -> Workload:
    absent = small.no("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    made = {"vae": small.vae(), "unet": small.unet_xl(), "scheduler": EulerDiscreteScheduler(), **(more or {})}
    return Workload(
        getattr(diffusers, kind)(**absent, **made, add_watermarker=False), {**small.text_xl(), **conditions}
    )


def _xl_controlled() -> Workload:
    """Return SDXL with a ControlNet and a LoRA in its U-Net."""
    work = _xl("StableDiffusionXLControlNetPipeline", {"controlnet": small.controlnet_xl()}, image=image())
    work.pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "conv1"], init_lora_weights=False))
    return work


def _svd() -> Workload:
    made = {"unet": small.unet_of_frames(), "scheduler": EulerDiscreteScheduler(), **small.vision()}
    vae = small.random(diffusers.AutoencoderKLTemporalDecoder(block_out_channels=(32,)))
    pipe = diffusers.StableVideoDiffusionPipeline(vae=vae, **made)
    return Workload(pipe, {"image": image(), **small.VIDEO}, "max_guidance_scale", {"num_videos_per_prompt": 2})


def _video(kind: str, unet: Any, components: Mapping[str, Any], several: Any, **conditions: Any) -> Workload:
    made = {"vae": small.vae(), "unet": unet, "scheduler": small.ddim(), **small.no("text_encoder", "tokenizer")}
    pipe = getattr(diffusers, kind)(**made, **components)
    return Workload(pipe, {**text(), **small.VIDEO, **conditions}, several=several)


def _pixels(kind: str, scheduler: Any) -> Workload:
    pipe = getattr(diffusers, kind)(small.unet_of_pixels(), scheduler)
    return Workload(pipe, {"output_type": "pt"}, None, {"batch_size": 2}, parts=1)


def _classes() -> Workload:
    config = {"block_out_channels": (4,), "norm_num_groups": 4, "latent_channels": 4, "vq_embed_dim": 4}
    embedder = small.random(ClassEmbedder(num_classes=3, embedding_dim=CONTEXT_DIM))
    vqvae = small.random(diffusers.VQModel(**config))
    pipe = ClassConditionalPipeline(vqvae, small.unet(), embedder, DDIMScheduler())
    return Workload(pipe, {"class_labels": (1,)}, several={"class_labels": (1, 2)})


def _unclip(network: str, steps: str) -> Workload:
    """Return unCLIP with a decoder U-Net and two super-resolution U-Nets; the second one makes the last step."""
    pipe = diffusers.UnCLIPPipeline(**small.unclip())
    conditions = {"prompt": "a red coat", "output_type": "np", "prior_guidance_scale": 1.0}
    conditions |= {"prior_num_inference_steps": 2, "decoder_num_inference_steps": 2, "super_res_num_inference_steps": 3}
    del conditions[steps]
    return Workload(pipe, conditions, "decoder_guidance_scale", network=network, steps=steps)


_TWO_VIDEOS = {"num_videos_per_prompt": 2}
_BUILDERS: dict[str, Callable[[], Workload]] = {
    "text2img": _stable,
    "img2img": lambda: _from_image(_stable("StableDiffusionImg2ImgPipeline", strength=0.8)),
    "inpaint": partial(_inpaint, 4),
    "inpaint, 9 channels": partial(_inpaint, 9),
    "InstructPix2Pix": lambda: _from_image(
        _stable("StableDiffusionInstructPix2PixPipeline", small.unet(in_channels=8), parts=3)
    ),
    "ControlNet": partial(_controlled, 1),
    "two ControlNets": partial(_controlled, 2),
    "ControlNet img2img": _controlled_from_image,
    "ControlNet-XS": _controlled_inside,
    "self-attention guidance": partial(_stable, "StableDiffusionSAGPipeline"),
    "T2I-Adapter": _adapted,
    "IP-Adapter": lambda: _stable(unet=small.unet_of_images(), ip_adapter_image_embeds=[noise(2, 1, 6)]),
    "PAG": partial(_stable, "StableDiffusionPAGPipeline", parts=3),
    "panorama": _panorama,
    "LCM": _consistent,
    "SDXL text2img": _xl,
    "SDXL img2img": lambda: _xl("StableDiffusionXLImg2ImgPipeline", image=image(), strength=0.8),
    "SDXL base": partial(_xl, denoising_end=0.6),
    "SDXL refiner": lambda: _xl("StableDiffusionXLImg2ImgPipeline", image=noise(1, 4, 8, 8), denoising_start=0.4),
    "SDXL ControlNet, LoRA": _xl_controlled,
    "SVD": _svd,
    "AnimateDiff": lambda: _video(
        "AnimateDiffPipeline", small.unet_of_motion(), small.no("motion_adapter"), _TWO_VIDEOS
    ),
    "text-to-video": lambda: _video("TextToVideoSDPipeline", small.unet_of_video(), {}, None),
    "I2VGen-XL": lambda: _video(
        "I2VGenXLPipeline", small.unet_of_image_and_text(), small.vision(), _TWO_VIDEOS, image=image()
    ),
    "DDPM": lambda: _pixels("DDPMPipeline", DDPMScheduler()),
    "DDIM": lambda: _pixels("DDIMPipeline", DDIMScheduler()),
    "LDM": _classes,
    "unCLIP, pipe.decoder": partial(_unclip, "decoder", "decoder_num_inference_steps"),
    "unCLIP, pipe.super_res_first": partial(_unclip, "super_res_first", "super_res_num_inference_steps"),
}
NAMES = tuple(_BUILDERS)

# the configuration of each option
OPTIONS: dict[str, dict[str, Any]] = {
    "Karras sigmas": {"use_karras_sigmas": True},
    "exponential sigmas": {"use_exponential_sigmas": True},
    "beta sigmas": {"use_beta_sigmas": True},
    "flow sigmas": {"use_flow_sigmas": True, "prediction_type": "flow_prediction"},
    "leading": {"timestep_spacing": "leading"},
    "linspace": {"timestep_spacing": "linspace"},
    "trailing": {"timestep_spacing": "trailing"},
    "zero SNR": {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
    "no PRK steps": {"skip_prk_steps": True},
    "SDE": {"algorithm_type": "sde-dpmsolver++"},
    "order 1": {"solver_order": 1},
    "order 3": {"solver_order": 3},
}
_NEEDED = {"noise_sampler_seed": 0, "original_inference_steps": 25}  # the same noise again; a schedule of few steps


@cache
def classes() -> dict[str, type]:
    """Return the schedulers of this diffusers version whose requirements are installed."""
    found = {name: getattr(diffusers, name) for name in dir(diffusers)}
    return {
        name: kind
        for name, kind in found.items()
        if isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)
    }


def options(name: str) -> list[str]:
    """Return the options that a scheduler's constructor knows."""
    known = inspect.signature(classes()[name].__init__).parameters
    return [option for option, config in OPTIONS.items() if config.keys() <= known.keys()]


def is_default(name: str, option: str) -> bool:
    """Return whether the option is what the scheduler's constructor takes anyway."""
    known = inspect.signature(classes()[name].__init__).parameters
    return all(known[key].default == value for key, value in OPTIONS[option].items())


@cache
def takes(name: str, option: str | None = None) -> bool:
    """Return whether the constructor accepts the option and needs no other argument."""
    try:
        scheduler(name, option)
    except (TypeError, ValueError, NotImplementedError):
        return False
    return True


def scheduler(name: str, option: str | None = None) -> Any:
    """Return a scheduler of one's own."""
    return deepcopy(_scheduler(name, option))  # some of them take a third of a second to make


@cache
def _scheduler(name: str, option: str | None) -> Any:
    kind = classes()[name]
    known = inspect.signature(kind.__init__).parameters
    needed = {key: value for key, value in _NEEDED.items() if key in known}
    return kind(**{**needed, **(OPTIONS[option] if option else {})})
