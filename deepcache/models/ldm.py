"""CompVis' checkpoints of class-conditional latent diffusion (LDM-4-G: cin256-v2), as diffusers pipelines."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from diffusers import DDIMScheduler
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    update_vae_attentions_ldm_to_diffusers,
)
from torch import Tensor

from deepcache.errors import DeepCacheError, shown
from deepcache.models.checkpoint import on_meta
from deepcache.models.class_conditional import ClassConditionalPipeline
from deepcache.models.ldm_config import CIN256_V2, Component, LdmConfig, ldm_networks, scheduler_config

# Where CompVis keeps the weights of the U-Net, of the autoencoder, of the classes, and the U-Net's moving average
_UNET, _FIRST_STAGE, CLASSES, _EMA = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "model_ema."
_PREFIXES = {"unet": _UNET, "vqvae": _FIRST_STAGE, "class_embedder": CLASSES}
_FOR_TRAINING = (f"{_FIRST_STAGE}loss.", f"{_FIRST_STAGE}model_ema.")  # sampling does not need these weights
_EITHER = (True, False)  # what a configuration may say; CompVis' default is the first
_SCHEDULES_AGREE = 1e-4  # both multiply 1000 factors, diffusers in float32


def ldm_pipeline(state: dict[str, Tensor], checkpoint: str, config: LdmConfig = CIN256_V2) -> ClassConditionalPipeline:
    """The pipeline of weights under CompVis' names; those of another architecture are refused, naming `checkpoint`."""
    state = {name: value for name, value in state.items() if not name.startswith(_FOR_TRAINING)}
    if config.one_of("use_ema", *_EITHER):
        unet = [name for name in state if name.startswith(_UNET)]
        averages = {name: _EMA + name.removeprefix("model.").replace(".", "") for name in unet}
        state |= {name: state[average] for name, average in averages.items() if average in state}
    scheduler = DDIMScheduler.from_config(scheduler_config(config))
    wanted = ldm_networks(config)
    if "scale_factor" in state:  # measured in the training
        factor = state["scale_factor"]
        if factor.numel() != 1 or not factor.is_floating_point() or not 0 < float(factor) < math.inf:
            raise DeepCacheError(f"expected scale_factor to be a number above 0, got {shown(factor)}; correct the file")
        wanted["vqvae"][2]["scaling_factor"] = float(factor)
    misfits: dict[str, list[str]] = {"missing": [], "unexpected": [], "of another shape": []}
    networks = {name: _filled(name, network, state, misfits) for name, network in wanted.items()}
    place, remedy = f"{config.source} in {checkpoint}", "pass the checkpoint's own YAML as the configuration"
    if told := [f"{len(names)} {kind} (the first: {names[0]})" for kind, names in misfits.items() if names]:
        raise DeepCacheError(f"expected the weights of {place}, got {', '.join(told)}; {remedy}")
    ours, theirs = scheduler.alphas_cumprod, state.get("alphas_cumprod")
    if theirs is not None and (theirs.shape != ours.shape or (theirs - ours).abs().max() > _SCHEDULES_AGREE):
        raise DeepCacheError(f"expected the noise schedule of {place}, got another; {remedy}")
    return ClassConditionalPipeline(**networks, scheduler=scheduler)


class _Name(str):
    """A name with the shape of a tensor, so that diffusers' conversion of weights can convert names instead."""

    __slots__ = ()
    shape = ()


def names_of(component: str, names: Iterable[str], config: Mapping[str, Any]) -> dict[str, str]:
    """Map diffusers' names of the weights of "unet", "vqvae" (also a KL autoencoder) or "class_embedder" to CompVis'.

    `names` are those in the checkpoint; those of other networks are left out. `config` is the network's in diffusers.
    """
    prefix = _PREFIXES[component]
    own = {name: name for name in names if name.startswith(prefix)}
    if component == "class_embedder":
        return {name.removeprefix(prefix): name for name in own}
    if component == "unet":
        return dict(convert_ldm_unet_checkpoint(own, config))
    found = convert_ldm_vae_checkpoint({name: _Name(name) for name in own}, config)
    # diffusers' conversion knows neither attention outside of the middle, which it leaves as it is, nor the codebook
    for name in list(found):
        if at := re.match(r"\w+\.(down|up)\.(\d+)\.attn\.", name):
            side, level = at[1], int(at[2])
            block = level if side == "down" else len(config["up_block_types"]) - 1 - level
            mapping = {"old": f"{side}.{level}.attn", "new": f"{side}_blocks.{block}.attentions"}
            update_vae_attentions_ldm_to_diffusers([name], found, {name: found.pop(name)}, mapping)
    found |= {name.removeprefix(prefix): name for name in own if name == f"{prefix}quantize.embedding.weight"}
    return {name: str(theirs) for name, theirs in found.items()}


def _filled(component: str, network: Component, state: dict[str, Tensor], misfits: dict[str, list[str]]) -> Any:
    """Build a network, fill in its weights, and note the weights that do not fit, by the reason."""
    model = on_meta(*network)
    names = names_of(component, state, network[2])
    given: dict[str, Tensor] = {}
    for name, wanted in model.state_dict().items():
        if name not in names:
            misfits["missing"].append(f"the {component}'s {name}")
            continue
        tensor = state[names[name]]
        is_pointwise = tensor.shape == (*wanted.shape, 1, 1)  # a linear layer in diffusers
        given[name] = tensor.flatten(1) if is_pointwise else tensor
        if given[name].shape != wanted.shape:
            misfits["of another shape"].append(f"{names[name]}: {tuple(tensor.shape)} for {tuple(wanted.shape)}")
    used = {names[name] for name in given}
    misfits["unexpected"] += [name for name in state if name.startswith(_PREFIXES[component]) and name not in used]
    if not misfits["missing"] and not misfits["of another shape"]:
        model.load_state_dict(given, assign=True)
        model.requires_grad_(requires_grad=False)
    return model
