"""CompVis' configurations of latent diffusion, as diffusers' configurations: U-Net, VQ autoencoder, classes, noise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepcache.errors import DeepCacheError, shown
from deepcache.files import read_yaml

Config = dict[str, Any]

_UNET = "unet_config.params"
_FIRST_STAGE = "first_stage_config.params"
_DD = f"{_FIRST_STAGE}.ddconfig"
_CLASSES = "cond_stage_config.params"
# What diffusers' networks have no other way of; a field that is left out has CompVis' default, which is the same
_ONLY = {
    "conditioning_key": "crossattn",
    "beta_schedule": "linear",
    f"{_UNET}.use_spatial_transformer": True,
    f"{_UNET}.conv_resample": True,
    f"{_UNET}.dims": 2,
    f"{_UNET}.num_classes": None,
    f"{_UNET}.n_embed": None,
    f"{_UNET}.resblock_updown": False,
    f"{_UNET}.use_scale_shift_norm": False,
    f"{_UNET}.use_linear_in_transformer": False,
    f"{_DD}.double_z": False,
    f"{_DD}.resamp_with_conv": True,
    f"{_DD}.attn_type": "vanilla",
    f"{_DD}.use_linear_attn": False,
    f"{_DD}.give_pre_end": False,
    f"{_DD}.tanh_out": False,
}
_TARGETS = {  # the classes that are known, by the end of their names
    "unet_config": "UNetModel",
    "first_stage_config": "VQModelInterface",
    "cond_stage_config": "ClassEmbedder",
}
_MISSING = object()
_MOST = 1_000_000  # of a field; the largest published one, a codebook's, is 16,384
_LONGEST = 64  # levels of a U-Net; 6 in what is published
_PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


@dataclass(frozen=True)
class LdmConfig:
    """The `model.params` of a configuration, whose fields have dotted names; `source` is where it comes from."""

    source: str
    params: Config

    def __post_init__(self) -> None:
        for part, kind in _TARGETS.items():
            if not str(self[f"{part}.target"]).endswith(f".{kind}"):
                raise self.other(f"{part}.target", f"a class {kind}")
        for name, value in _ONLY.items():
            if self.get(name, value) != value:
                raise self.other(name, repr(value))

    def __getitem__(self, name: str) -> Any:
        found = self.get(name, _MISSING)
        if found is _MISSING:
            raise DeepCacheError(f"expected a field model.params.{name} in {self.source}, which has none; add it")
        return found

    def get(self, name: str, otherwise: Any) -> Any:
        """A field, or `otherwise` where there is none."""
        found: Any = self.params
        for key in name.split("."):
            found = found.get(key, _MISSING) if isinstance(found, dict) else _MISSING
        return otherwise if found is _MISSING else found

    def whole(self, name: str) -> int:
        """A field that is a whole number in 1..`_MOST`."""
        if not _is_whole(self[name]):
            raise self.other(name, f"a whole number of at least 1 and at most {_MOST:,}")
        return self[name]  # type: ignore[no-any-return]

    def wholes(self, name: str) -> tuple[int, ...]:
        """A field that is a list of at most `_LONGEST` whole numbers in 1..`_MOST`."""
        found = self[name]
        if not isinstance(found, (list, tuple)) or len(found) > _LONGEST or not all(map(_is_whole, found)):
            raise self.other(name, f"a list of at most {_LONGEST} whole numbers of at least 1 and at most {_MOST:,}")
        return tuple(self[name])

    def number(self, name: str) -> float:
        """A field that is a finite number above 0."""
        if type(self[name]) not in (int, float) or not 0 < self[name] <= _MOST:
            raise self.other(name, f"a number above 0 and at most {_MOST:,}")
        return self[name]  # type: ignore[no-any-return]

    def other(self, name: str, expected: str) -> DeepCacheError:
        """The error that a field is not what was expected."""
        return DeepCacheError(
            f"expected {expected} for model.params.{name} in {self.source}, got {shown(self.get(name, None))}; "
            "class-conditional latent diffusion on a VQ autoencoder is what can be loaded"
        )

    @property
    def has_ema(self) -> bool:
        """Whether the averaged weights are the ones to sample with; CompVis' default is yes."""
        found = self.get("use_ema", True)
        if not isinstance(found, bool):
            raise self.other("use_ema", "true or false")
        return found


def _is_whole(value: Any) -> bool:
    return type(value) is int and 1 <= value <= _MOST


CIN256_V2 = LdmConfig(  # class-conditional ImageNet 256; its YAML sets one head of all channels, not heads of 32
    "cin256-v2's configuration",
    {
        "linear_start": 0.0015,
        "linear_end": 0.0195,
        "timesteps": 1000,
        "image_size": 64,
        "conditioning_key": "crossattn",
        "use_ema": False,
        "unet_config": {
            "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
            "params": {
                "in_channels": 3,
                "out_channels": 3,
                "model_channels": 192,
                "attention_resolutions": [8, 4, 2],
                "num_res_blocks": 2,
                "channel_mult": [1, 2, 3, 5],
                "num_heads": 1,
                "use_spatial_transformer": True,
                "transformer_depth": 1,
                "context_dim": 512,
            },
        },
        "first_stage_config": {
            "target": "ldm.models.autoencoder.VQModelInterface",
            "params": {
                "embed_dim": 3,
                "n_embed": 8192,
                "ddconfig": {
                    "double_z": False,
                    "z_channels": 3,
                    "resolution": 256,
                    "in_channels": 3,
                    "out_ch": 3,
                    "ch": 128,
                    "ch_mult": [1, 2, 4],
                    "num_res_blocks": 2,
                    "attn_resolutions": [],
                },
            },
        },
        "cond_stage_config": {
            "target": "ldm.modules.encoders.modules.ClassEmbedder",
            "params": {"n_classes": 1001, "embed_dim": 512},
        },
    },
)


def read_config(path: Path) -> LdmConfig:
    """From a YAML file of CompVis'.

    Raises:
        DeepCacheError: it cannot be read, lacks a field, or tells of another architecture.
    """
    found = read_yaml(path, "CompVis' YAML")
    for key in ("model", "params"):
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, dict):
        raise DeepCacheError(f"expected CompVis' YAML in {path}, got one without model.params; pass the model's own")
    return LdmConfig(str(path), found)


def unet_config(config: LdmConfig) -> Config:
    """`UNet2DConditionModel`'s: attention at the downsampling rates `attention_resolutions`, and in the middle."""
    widths = [config.whole(f"{_UNET}.model_channels") * m for m in config.wholes(f"{_UNET}.channel_mult")]
    rates = config.wholes(f"{_UNET}.attention_resolutions")
    depth = f"{_UNET}.transformer_depth"
    kinds = ["CrossAttn" if 2**level in rates else "" for level in range(len(widths))]
    return {
        "sample_size": config.whole("image_size"),
        "in_channels": config.whole(f"{_UNET}.in_channels"),
        "out_channels": config.whole(f"{_UNET}.out_channels"),
        "block_out_channels": tuple(widths),
        "layers_per_block": config.whole(f"{_UNET}.num_res_blocks"),
        "down_block_types": tuple(f"{kind}DownBlock2D" for kind in kinds),
        "up_block_types": tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        "attention_head_dim": _num_heads(config, widths),
        "cross_attention_dim": config.whole(f"{_UNET}.context_dim"),
        "transformer_layers_per_block": config.whole(depth) if config.get(depth, None) is not None else 1,
    }


def _num_heads(config: LdmConfig, widths: list[int]) -> tuple[int, ...]:
    """A level, which is what diffusers' `attention_head_dim` means."""
    unset = -1  # CompVis'
    if config.get(f"{_UNET}.num_head_channels", unset) == unset:
        return (config.whole(f"{_UNET}.num_heads"),) * len(widths)
    return tuple(max(1, width // config.whole(f"{_UNET}.num_head_channels")) for width in widths)


def vqvae_config(config: LdmConfig) -> Config:
    """`VQModel`'s: attention at the resolutions `attn_resolutions`, and in the middle."""
    size = config.whole(f"{_DD}.resolution")
    widths = [config.whole(f"{_DD}.ch") * m for m in config.wholes(f"{_DD}.ch_mult")]
    resolutions = config.wholes(f"{_DD}.attn_resolutions")
    kinds = ["Attn" if size // 2**level in resolutions else "" for level in range(len(widths))]
    return {
        "sample_size": size,
        "in_channels": config.whole(f"{_DD}.in_channels"),
        "out_channels": config.whole(f"{_DD}.out_ch"),
        "block_out_channels": tuple(widths),
        "layers_per_block": config.whole(f"{_DD}.num_res_blocks"),
        "down_block_types": tuple(f"{kind}DownEncoderBlock2D" for kind in kinds),
        "up_block_types": tuple(f"{kind}UpDecoderBlock2D" for kind in reversed(kinds)),
        "latent_channels": config.whole(f"{_DD}.z_channels"),
        "num_vq_embeddings": config.whole(f"{_FIRST_STAGE}.n_embed"),
        "vq_embed_dim": config.whole(f"{_FIRST_STAGE}.embed_dim"),
        "scaling_factor": config.number("scale_factor") if config.get("scale_factor", None) else 1.0,
    }


def classes_config(config: LdmConfig) -> Config:
    """`ClassEmbedder`'s: the last of CompVis' `n_classes` is the one for no class."""
    return {
        "num_classes": config.whole(f"{_CLASSES}.n_classes") - 1,
        "embedding_dim": config.whole(f"{_CLASSES}.embed_dim"),
    }


def scheduler_config(config: LdmConfig) -> Config:
    """`DDIMScheduler`'s: CompVis' timesteps are 1, 1 + c, 1 + 2c, ..., and the last step ends at the first alpha."""
    prediction = config.get("parameterization", "eps")
    if not isinstance(prediction, str) or prediction not in _PREDICTIONS:
        raise config.other("parameterization", f"one of {', '.join(_PREDICTIONS)}")
    return {
        "num_train_timesteps": config.whole("timesteps"),
        "beta_start": config.number("linear_start"),
        "beta_end": config.number("linear_end"),
        "beta_schedule": "scaled_linear",  # the squares of evenly spaced roots, which CompVis calls linear
        "prediction_type": _PREDICTIONS[prediction],
        "steps_offset": 1,
        "set_alpha_to_one": False,
        "clip_sample": False,
    }
