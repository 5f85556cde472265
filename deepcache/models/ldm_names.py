"""The names of weights: diffusers' to CompVis', for the U-Net, the VQ autoencoder and the class embedder."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    update_vae_attentions_ldm_to_diffusers,
)

UNET, FIRST_STAGE, CLASSES = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
EMA = "model_ema."

Names = dict[str, str]  # diffusers' to CompVis'


class _Name(str):
    """A name that diffusers' conversion takes for a tensor, so that it tells what it would rename."""

    __slots__ = ()
    shape = ()


def unet_names(names: Iterable[str], config: dict[str, Any]) -> Names:
    """Of the weights under `model.diffusion_model`; what diffusers does not know is left out."""
    return dict(convert_ldm_unet_checkpoint({name: name for name in names if name.startswith(UNET)}, config))


def vqvae_names(names: Iterable[str], config: dict[str, Any]) -> Names:
    """Of the weights under `first_stage_model`; diffusers' conversion does not know the codebook, and attention in the
    middle alone.
    """
    own = [name for name in names if name.startswith(FIRST_STAGE)]
    levels = [name.removeprefix(FIRST_STAGE) for name in own if re.search(r"\.(down|up)\.\d+\.attn\.", name)]
    rest = {name: _Name(name) for name in own if name.removeprefix(FIRST_STAGE) not in levels}
    found: dict[str, str] = convert_ldm_vae_checkpoint(rest, config)
    for name in levels:
        side, level = re.match(r"\w+\.(down|up)\.(\d+)", name).groups()  # type: ignore[union-attr]
        block = int(level) if side == "down" else len(config["up_block_types"]) - 1 - int(level)
        mapping = {"old": f"{side}.{level}.attn", "new": f"{side}_blocks.{block}.attentions"}
        update_vae_attentions_ldm_to_diffusers([name], found, {name: _Name(FIRST_STAGE + name)}, mapping)
    codebook = "quantize.embedding.weight"
    if FIRST_STAGE + codebook in own:
        found[codebook] = FIRST_STAGE + codebook
    return {name: str(theirs) for name, theirs in found.items()}


def classes_names(names: Iterable[str], _: dict[str, Any]) -> Names:
    """Of the weights under `cond_stage_model`."""
    return {name.removeprefix(CLASSES): name for name in names if name.startswith(CLASSES)}


def averaged(name: str) -> str:
    """Where CompVis keeps the moving average of one of the U-Net's weights."""
    return EMA + name.removeprefix("model.").replace(".", "")


PARTS: dict[str, tuple[str, Callable[[Iterable[str], dict[str, Any]], Names]]] = {
    "unet": (UNET, unet_names),
    "vqvae": (FIRST_STAGE, vqvae_names),
    "class_embedder": (CLASSES, classes_names),
}
