"""CompVis' configurations of latent diffusion, as diffusers' configurations: U-Net, VQ autoencoder, classes, noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deepcache.errors import DeepCacheError, shown
from deepcache.files import read_yaml, refused

Config = dict[str, Any]
Component = tuple[str, str, Config]  # library, class, configuration

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
# The known classes, by the end of their names
_TARGETS = {"unet_config": "UNetModel", "first_stage_config": "VQModelInterface", "cond_stage_config": "ClassEmbedder"}
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
            ends = f".{kind}"
            self._require(f"{part}.target", f"a class {kind}", lambda found: str(found).endswith(ends))  # noqa: B023
        for name, value in _ONLY.items():
            self.one_of(name, value)

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a field, or `default` if there is no such field."""
        found: Any = self.params
        for key in name.split("."):
            found = found.get(key, default) if isinstance(found, dict) else default
        return found

    def _require(self, name: str, expected: str, is_right: Callable[[Any], bool], default: Any = None) -> Any:
        found = self.get(name, default)
        if not is_right(found):
            raise DeepCacheError(
                f"expected {expected} for model.params.{name} in {self.source}, "
                f"got {'no such field' if found is None else shown(found)}; "
                "class-conditional latent diffusion on a VQ autoencoder is what can be loaded"
            )
        return found

    def one_of(self, name: str, *values: Any) -> Any:
        """The value of a field that must be one of some values; the first of them where there is no such field."""
        return self._require(name, " or ".join(map(repr, values)), values.__contains__, values[0])

    def whole(self, name: str) -> int:
        """The value of a field that must be a whole number in 1..`_MOST`."""
        return self._require(name, _WHOLE, _is_whole)  # type: ignore[no-any-return]

    def wholes(self, name: str) -> tuple[int, ...]:
        """The value of a field that must be a list of at most `_LONGEST` whole numbers in 1..`_MOST`."""
        found = self.get(name)
        holds = isinstance(found, list) and len(found) <= _LONGEST and all(map(_is_whole, found))
        return tuple(self._require(name, f"a list of at most {_LONGEST} values, each {_WHOLE}", lambda _: holds))

    def number(self, name: str) -> float:
        """The value of a field that must be a number above 0 and at most `_MOST`."""
        return self._require(name, f"a number above 0 and at most {_MOST:,}", _is_number)  # type: ignore[no-any-return]


def _is_whole(value: Any) -> bool:
    return type(value) is int and _is_number(value)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value <= _MOST


def read_config(path: Path) -> LdmConfig:
    """The configuration in one of CompVis' YAML files; a `DeepCacheError` if it is none, or another architecture's."""
    found = read_yaml(path, "CompVis' YAML")
    for key in ("model", "params"):
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, dict):
        raise refused(path, "CompVis' YAML", "which has no model.params; pass the model's own")
    return LdmConfig(str(path), found)


def levels(widths: Sequence[int], kinds: Sequence[str], down: str = "DownBlock2D", up: str = "UpBlock2D") -> Config:
    """The channels and the blocks of a network's levels, outermost first; a block's name is a kind and an end."""
    return {
        "block_out_channels": tuple(widths),
        "down_block_types": tuple(kind + down for kind in kinds),
        "up_block_types": tuple(kind + up for kind in reversed(kinds)),
    }


def ldm_networks(config: LdmConfig) -> dict[str, Component]:
    """The networks of the pipeline by their names in it; the last of CompVis' classes stands for no class.

    The U-Net has attention at the downsampling rates `attention_resolutions`, the autoencoder at the resolutions
    `attn_resolutions`, and both in the middle.
    """
    widths = [config.whole(f"{_UNET}.model_channels") * factor for factor in config.wholes(f"{_UNET}.channel_mult")]
    rates = config.wholes(f"{_UNET}.attention_resolutions")
    depth, channels = f"{_UNET}.transformer_depth", f"{_UNET}.num_head_channels"
    if config.get(channels, -1) == -1:  # CompVis sets -1 where the YAML counts heads, and not their channels
        heads = [config.whole(f"{_UNET}.num_heads")] * len(widths)
    else:
        heads = [max(1, width // config.whole(channels)) for width in widths]
    unet = {
        "sample_size": config.whole("image_size"),
        "in_channels": config.whole(f"{_UNET}.in_channels"),
        "out_channels": config.whole(f"{_UNET}.out_channels"),
        **levels(widths, ["CrossAttn" if 2**level in rates else "" for level in range(len(widths))]),
        "layers_per_block": config.whole(f"{_UNET}.num_res_blocks"),
        "attention_head_dim": tuple(heads),  # diffusers' name for the number of heads
        "cross_attention_dim": config.whole(f"{_UNET}.context_dim"),
        "transformer_layers_per_block": 1 if config.get(depth) is None else config.whole(depth),
    }
    size, resolutions = config.whole(f"{_DD}.resolution"), config.wholes(f"{_DD}.attn_resolutions")
    widths = [config.whole(f"{_DD}.ch") * factor for factor in config.wholes(f"{_DD}.ch_mult")]
    kinds = ["Attn" if size // 2**level in resolutions else "" for level in range(len(widths))]
    vqvae = {
        "sample_size": size,
        "in_channels": config.whole(f"{_DD}.in_channels"),
        "out_channels": config.whole(f"{_DD}.out_ch"),
        **levels(widths, kinds, "DownEncoderBlock2D", "UpDecoderBlock2D"),
        "layers_per_block": config.whole(f"{_DD}.num_res_blocks"),
        "latent_channels": config.whole(f"{_DD}.z_channels"),
        "num_vq_embeddings": config.whole(f"{_FIRST_STAGE}.n_embed"),
        "vq_embed_dim": config.whole(f"{_FIRST_STAGE}.embed_dim"),
        "scaling_factor": config.number("scale_factor") if config.get("scale_factor") else 1.0,
    }
    num_classes, width = config.whole(f"{_CLASSES}.n_classes") - 1, config.whole(f"{_CLASSES}.embed_dim")
    classes = {"num_classes": num_classes, "embedding_dim": width}
    return {
        "unet": ("diffusers", "UNet2DConditionModel", unet),
        "vqvae": ("diffusers", "VQModel", vqvae),
        "class_embedder": ("deepcache.models.class_conditional", "ClassEmbedder", classes),
    }


def scheduler_config(config: LdmConfig) -> Config:
    """A `DDIMScheduler`'s: CompVis' timesteps are 1, 1 + c, 1 + 2c, ..., and the last step ends at the first alpha."""
    return {
        "num_train_timesteps": config.whole("timesteps"),
        "beta_start": config.number("linear_start"),
        "beta_end": config.number("linear_end"),
        "beta_schedule": "scaled_linear",  # betas are the squares of evenly spaced roots; CompVis calls this linear
        "prediction_type": _PREDICTIONS[config.one_of("parameterization", *_PREDICTIONS)],
        "steps_offset": 1,
        "set_alpha_to_one": False,
        "clip_sample": False,
    }


CIN256_V2 = replace(read_config(Path(__file__).with_name("cin256-v2.yaml")), source="cin256-v2's configuration")
