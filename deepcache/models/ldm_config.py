"""CompVis' configurations of latent diffusion, as diffusers' configurations: U-Net, VQ autoencoder, classes, noise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deepcache.errors import DeepCacheError, shown
from deepcache.files import read_yaml

Component = tuple[str, str, dict[str, Any]]  # library, class, configuration

_UNET = "unet_config.params"
_FIRST_STAGE = "first_stage_config.params"
_DD = f"{_FIRST_STAGE}.ddconfig"
_CLASSES = "cond_stage_config.params"
_ONLY = {  # fields for which diffusers' networks know one value alone; it is CompVis' default for a missing field
    "conditioning_key": "crossattn",
    "beta_schedule": "linear",
    f"{_UNET}.dims": 2,
    f"{_DD}.attn_type": "vanilla",
    f"{_DD}.resamp_with_conv": True,
    **{f"{_UNET}.{name}": True for name in ("use_spatial_transformer", "conv_resample")},
    **{f"{_UNET}.{name}": None for name in ("num_classes", "n_embed")},
    **{f"{_UNET}.{name}": False for name in ("resblock_updown", "use_scale_shift_norm", "use_linear_in_transformer")},
    **{f"{_DD}.{name}": False for name in ("double_z", "use_linear_attn", "give_pre_end", "tanh_out")},
}
_TARGETS = {  # the known classes, by the end of their names
    "unet_config": "UNetModel",
    "first_stage_config": "VQModelInterface",
    "cond_stage_config": "ClassEmbedder",
}
_MISSING = object()
_MOST = 1_000_000  # the largest value of a field; the largest published value, a codebook's size, is 16,384
_LONGEST = 64  # the most levels of a U-Net; published U-Nets have 6
_WHOLE = f"a whole number of at least 1 and at most {_MOST:,}"
_PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


@dataclass(frozen=True)
class LdmConfig:
    """The `model.params` of a configuration, with dotted names; what diffusers cannot represent is refused."""

    source: str  # where the configuration comes from, for error messages
    params: dict[str, Any]

    def __post_init__(self) -> None:
        for part, kind in _TARGETS.items():
            name = f"{part}.target"
            self.require(name, f"a class {kind}", holds=str(self[name]).endswith(f".{kind}"))
        for name, value in _ONLY.items():
            self.require(name, repr(value), holds=self.get(name, value) == value)

    def __getitem__(self, name: str) -> Any:
        found = self.get(name, _MISSING)
        if found is _MISSING:
            raise DeepCacheError(f"expected a field model.params.{name} in {self.source}, which has none; add it")
        return found

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a field, or `default` if there is no such field."""
        found: Any = self.params
        for key in name.split("."):
            found = found.get(key, _MISSING) if isinstance(found, dict) else _MISSING
        return default if found is _MISSING else found

    def require(self, name: str, expected: str, *, holds: bool) -> None:
        """Refuse the configuration unless it holds that a field has the value that is expected."""
        if not holds:
            raise DeepCacheError(
                f"expected {expected} for model.params.{name} in {self.source}, got {shown(self.get(name))}; "
                "class-conditional latent diffusion on a VQ autoencoder is what can be loaded"
            )

    def whole(self, name: str) -> int:
        """The value of a field that must be a whole number in 1..`_MOST`."""
        self.require(name, _WHOLE, holds=_is_whole(self[name]))
        return self[name]  # type: ignore[no-any-return]

    def wholes(self, name: str) -> tuple[int, ...]:
        """The value of a field that must be a list of at most `_LONGEST` whole numbers in 1..`_MOST`."""
        found = self[name]
        is_right = isinstance(found, (list, tuple)) and len(found) <= _LONGEST and all(map(_is_whole, found))
        self.require(name, f"a list of at most {_LONGEST} values, each {_WHOLE}", holds=is_right)
        return tuple(found)

    def number(self, name: str) -> float:
        """The value of a field that must be a number above 0 and at most `_MOST`."""
        is_right = type(self[name]) in (int, float) and 0 < self[name] <= _MOST
        self.require(name, f"a number above 0 and at most {_MOST:,}", holds=is_right)
        return self[name]  # type: ignore[no-any-return]

    @property
    def has_ema(self) -> bool:
        """Whether CompVis samples with the averaged weights; they are the default."""
        found = self.get("use_ema", default=True)
        self.require("use_ema", "true or false", holds=isinstance(found, bool))
        return found  # type: ignore[no-any-return]


def _is_whole(value: Any) -> bool:
    return type(value) is int and 1 <= value <= _MOST


def read_config(path: Path) -> LdmConfig:
    """The configuration in one of CompVis' YAML files; a `DeepCacheError` if it is none, or another architecture's."""
    found = read_yaml(path, "CompVis' YAML")
    for key in ("model", "params"):
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, dict):
        raise DeepCacheError(f"expected CompVis' YAML in {path}, got one without model.params; pass the model's own")
    return LdmConfig(str(path), found)


CIN256_V2 = replace(read_config(Path(__file__).with_name("cin256-v2.yaml")), source="cin256-v2's configuration")


def ldm_networks(config: LdmConfig) -> dict[str, Component]:
    """The networks of the pipeline by their names in it; the last of CompVis' classes stands for no class."""
    classes = {
        "num_classes": config.whole(f"{_CLASSES}.n_classes") - 1,
        "embedding_dim": config.whole(f"{_CLASSES}.embed_dim"),
    }
    return {
        "unet": ("diffusers", "UNet2DConditionModel", _unet_config(config)),
        "vqvae": ("diffusers", "VQModel", _vqvae_config(config)),
        "class_embedder": ("deepcache.models.class_conditional", "ClassEmbedder", classes),
    }


def scheduler_config(config: LdmConfig) -> dict[str, Any]:
    """A `DDIMScheduler`'s: CompVis' timesteps are 1, 1 + c, 1 + 2c, ..., and the last step ends at the first alpha."""
    prediction = config.get("parameterization", "eps")
    is_known = isinstance(prediction, str) and prediction in _PREDICTIONS
    config.require("parameterization", f"one of {', '.join(_PREDICTIONS)}", holds=is_known)
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


def _unet_config(config: LdmConfig) -> dict[str, Any]:
    """The U-Net's configuration: attention is at the downsampling rates `attention_resolutions` and in the middle."""
    widths = [config.whole(f"{_UNET}.model_channels") * m for m in config.wholes(f"{_UNET}.channel_mult")]
    rates = config.wholes(f"{_UNET}.attention_resolutions")
    kinds = ["CrossAttn" if 2**level in rates else "" for level in range(len(widths))]
    depth, heads = f"{_UNET}.transformer_depth", f"{_UNET}.num_head_channels"
    has_count = config.get(heads, -1) == -1  # CompVis sets -1 where the YAML counts heads, and not their channels
    return {
        "sample_size": config.whole("image_size"),
        "in_channels": config.whole(f"{_UNET}.in_channels"),
        "out_channels": config.whole(f"{_UNET}.out_channels"),
        "block_out_channels": tuple(widths),
        "layers_per_block": config.whole(f"{_UNET}.num_res_blocks"),
        "down_block_types": tuple(f"{kind}DownBlock2D" for kind in kinds),
        "up_block_types": tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        "attention_head_dim": tuple(  # diffusers' name for the number of heads
            config.whole(f"{_UNET}.num_heads") if has_count else max(1, width // config.whole(heads))
            for width in widths
        ),
        "cross_attention_dim": config.whole(f"{_UNET}.context_dim"),
        "transformer_layers_per_block": 1 if config.get(depth) is None else config.whole(depth),
    }


def _vqvae_config(config: LdmConfig) -> dict[str, Any]:
    """The autoencoder's configuration: attention is at the resolutions `attn_resolutions` and in the middle."""
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
        "scaling_factor": config.number("scale_factor") if config.get("scale_factor") else 1.0,
    }
