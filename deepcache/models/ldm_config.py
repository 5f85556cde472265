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
# Fields for which diffusers' networks know one value alone; it is CompVis' default for a field that is left out
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
_TARGETS = {  # the known classes, by the end of their names
    "unet_config": "UNetModel",
    "first_stage_config": "VQModelInterface",
    "cond_stage_config": "ClassEmbedder",
}
_MISSING = object()
_MOST = 1_000_000  # the largest value of a field; the largest published value, a codebook's size, is 16,384
_LONGEST = 64  # the most levels of a U-Net; published U-Nets have 6
_PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


@dataclass(frozen=True)
class LdmConfig:
    """The `model.params` of a configuration, whose fields have dotted names.

    Attributes:
        source: where the configuration comes from, for error messages.
        params: the nested fields.

    Raises:
        DeepCacheError: the configuration is of networks that diffusers cannot represent.
    """

    source: str
    params: Config

    def __post_init__(self) -> None:
        for part, kind in _TARGETS.items():
            if not str(self[f"{part}.target"]).endswith(f".{kind}"):
                raise self.refusal(f"{part}.target", f"a class {kind}")
        for name, value in _ONLY.items():
            if self.get(name, value) != value:
                raise self.refusal(name, repr(value))

    def __getitem__(self, name: str) -> Any:
        found = self.get(name, _MISSING)
        if found is _MISSING:
            raise DeepCacheError(f"expected a field model.params.{name} in {self.source}, which has none; add it")
        return found

    def get(self, name: str, default: Any) -> Any:
        """The value of a field, or `default` if there is no such field."""
        found: Any = self.params
        for key in name.split("."):
            found = found.get(key, _MISSING) if isinstance(found, dict) else _MISSING
        return default if found is _MISSING else found

    def whole(self, name: str) -> int:
        """The value of a field that must be a whole number in 1..`_MOST`."""
        if not _is_whole(self[name]):
            raise self.refusal(name, f"a whole number of at least 1 and at most {_MOST:,}")
        return self[name]  # type: ignore[no-any-return]

    def wholes(self, name: str) -> tuple[int, ...]:
        """The value of a field that must be a list of at most `_LONGEST` whole numbers in 1..`_MOST`."""
        found = self[name]
        if not isinstance(found, (list, tuple)) or len(found) > _LONGEST or not all(map(_is_whole, found)):
            raise self.refusal(name, f"a list of at most {_LONGEST} whole numbers of at least 1 and at most {_MOST:,}")
        return tuple(self[name])

    def number(self, name: str) -> float:
        """The value of a field that must be a number above 0 and at most `_MOST`."""
        if type(self[name]) not in (int, float) or not 0 < self[name] <= _MOST:
            raise self.refusal(name, f"a number above 0 and at most {_MOST:,}")
        return self[name]  # type: ignore[no-any-return]

    def refusal(self, name: str, expected: str) -> DeepCacheError:
        """An error which says that a field does not have the value that was expected."""
        return DeepCacheError(
            f"expected {expected} for model.params.{name} in {self.source}, got {shown(self.get(name, None))}; "
            "class-conditional latent diffusion on a VQ autoencoder is what can be loaded"
        )

    @property
    def has_ema(self) -> bool:
        """Whether CompVis samples with the averaged weights; they are the default."""
        found = self.get("use_ema", True)
        if not isinstance(found, bool):
            raise self.refusal("use_ema", "true or false")
        return found


def _is_whole(value: Any) -> bool:
    return type(value) is int and 1 <= value <= _MOST


CIN256_V2 = (
    LdmConfig(  # class-conditional ImageNet 256; its YAML sets one head of all channels, which the weights do not tell
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
)


def read_config(path: Path) -> LdmConfig:
    """The configuration in one of CompVis' YAML files.

    Raises:
        DeepCacheError: the file cannot be read, lacks a field, or describes another architecture.
    """
    found = read_yaml(path, "CompVis' YAML")
    for key in ("model", "params"):
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, dict):
        raise DeepCacheError(f"expected CompVis' YAML in {path}, got one without model.params; pass the model's own")
    return LdmConfig(str(path), found)


def ldm_networks(config: LdmConfig) -> dict[str, tuple[str, str, Config]]:
    """The networks of the pipeline by their names in it: the library and the class of each, and its configuration."""
    return {
        "unet": ("diffusers", "UNet2DConditionModel", _unet_config(config)),
        "vqvae": ("diffusers", "VQModel", _vqvae_config(config)),
        "class_embedder": ("deepcache.models.class_conditional", "ClassEmbedder", _classes_config(config)),
    }


def scheduler_config(config: LdmConfig) -> Config:
    """The configuration of a `DDIMScheduler`.

    CompVis' timesteps are 1, 1 + c, 1 + 2c, ..., and the last step ends at the first alpha.
    """
    prediction = config.get("parameterization", "eps")
    if not isinstance(prediction, str) or prediction not in _PREDICTIONS:
        raise config.refusal("parameterization", f"one of {', '.join(_PREDICTIONS)}")
    return {
        "num_train_timesteps": config.whole("timesteps"),
        "beta_start": config.number("linear_start"),
        "beta_end": config.number("linear_end"),
        "beta_schedule": "scaled_linear",  # betas are the squares of evenly spaced roots; CompVis calls this linear
        "prediction_type": _PREDICTIONS[prediction],
        "steps_offset": 1,
        "set_alpha_to_one": False,
        "clip_sample": False,
    }


def _unet_config(config: LdmConfig) -> Config:
    """The U-Net's: it has attention at the downsampling rates `attention_resolutions` and in the middle."""
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
    """The number of heads at each level, which is what diffusers calls `attention_head_dim`."""
    unset = -1  # how CompVis says that a field is not set
    if config.get(f"{_UNET}.num_head_channels", unset) == unset:
        return (config.whole(f"{_UNET}.num_heads"),) * len(widths)
    return tuple(max(1, width // config.whole(f"{_UNET}.num_head_channels")) for width in widths)


def _vqvae_config(config: LdmConfig) -> Config:
    """The autoencoder's: it has attention at the resolutions `attn_resolutions` and in the middle."""
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


def _classes_config(config: LdmConfig) -> Config:
    """The class embedder's: the last of CompVis' `n_classes` stands for no class."""
    return {
        "num_classes": config.whole(f"{_CLASSES}.n_classes") - 1,
        "embedding_dim": config.whole(f"{_CLASSES}.embed_dim"),
    }
