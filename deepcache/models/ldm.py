"""CompVis' checkpoints of class-conditional latent diffusion (LDM-4-G: cin256-v2), as diffusers pipelines."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    update_vae_attentions_ldm_to_diffusers,
)
from torch import Tensor

from deepcache.errors import DeepCacheError, shown
from deepcache.files import as_path
from deepcache.models.checkpoint import on_meta, weights
from deepcache.models.class_conditional import ClassConditionalPipeline
from deepcache.models.folders import moved
from deepcache.models.ldm_config import CIN256_V2, Component, LdmConfig, ldm_networks, read_config, scheduler_config

# Where CompVis keeps the weights of the U-Net, of the autoencoder, of the classes, and the U-Net's moving average
_UNET, _FIRST_STAGE, CLASSES, _EMA = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "model_ema."
_PREFIXES = {"unet": _UNET, "vqvae": _FIRST_STAGE, "class_embedder": CLASSES}
_FOR_TRAINING = (f"{_FIRST_STAGE}loss.", f"{_FIRST_STAGE}model_ema.")  # sampling does not need these weights
_SCHEDULES_AGREE = 1e-4  # both multiply 1000 factors, diffusers in float32

Misfits = dict[str, list[str]]  # names of weights that do not fit, by the reason


def load_ldm(
    checkpoint: str | Path,
    config: str | Path | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> ClassConditionalPipeline:
    """A checkpoint in the layout of CompVis' latent-diffusion, as a pipeline.

        pipe = deepcache.models.load_ldm("model.ckpt")
        pipe(class_labels=[207], num_inference_steps=250, guidance_scale=1.5).images

    The U-Net gets the averaged weights (`model_ema`) where the configuration says `use_ema` and the checkpoint has
    them, as in CompVis' samplers; cin256-v2 does not use them. The last class stands for no class.

    Args:
        checkpoint: a `.ckpt` or `.safetensors` file. No code in the file is ever run.
        config: CompVis' YAML; the configuration of cin256-v2 if None.
        dtype: dtype of the weights.
        device: device of the weights.

    Raises:
        DeepCacheError: a file cannot be read, carries code, or holds the weights of another architecture; or the
            configuration lacks a field.

    References: High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2022),
    https://github.com/CompVis/latent-diffusion
    """
    found = CIN256_V2 if config is None else read_config(as_path(config, "CompVis' YAML"))
    return moved(ldm_pipeline(weights(as_path(checkpoint, "a checkpoint")), str(checkpoint), found), dtype, device)  # type: ignore[no-any-return]


def ldm_pipeline(state: dict[str, Tensor], checkpoint: str, config: LdmConfig = CIN256_V2) -> ClassConditionalPipeline:
    """The pipeline of weights under CompVis' names; those of another architecture are refused, naming `checkpoint`."""
    state = _sampling_weights(state, config)
    scheduler = DDIMScheduler.from_config(scheduler_config(config))
    wanted = ldm_networks(config)
    if "scale_factor" in state:  # measured in the training
        factor = state["scale_factor"]
        if factor.numel() != 1 or not factor.is_floating_point() or not 0 < float(factor) < math.inf:
            raise DeepCacheError(f"expected scale_factor to be a number above 0, got {shown(factor)}; correct the file")
        wanted["vqvae"][2]["scaling_factor"] = float(factor)
    misfits: Misfits = {"missing": [], "unexpected": [], "of another shape": []}
    networks = {name: _filled(name, network, state, misfits) for name, network in wanted.items()}
    remedy = "pass the checkpoint's own YAML as the configuration"
    if told := [f"{len(names)} {kind} (the first: {names[0]})" for kind, names in misfits.items() if names]:
        raise DeepCacheError(
            f"expected the weights of {config.source} in {checkpoint}, got {', '.join(told)}; {remedy}"
        )
    ours, theirs = scheduler.alphas_cumprod, state.get("alphas_cumprod")
    if theirs is not None and (theirs.shape != ours.shape or (theirs - ours).abs().max() > _SCHEDULES_AGREE):
        raise DeepCacheError(f"expected the noise schedule of {config.source} in {checkpoint}, got another; {remedy}")
    return ClassConditionalPipeline(**networks, scheduler=scheduler)


def names_of(component: str, names: Iterable[str], config: Mapping[str, Any]) -> dict[str, str]:
    """Map diffusers' names of the weights of "unet", "vqvae" (also a KL autoencoder) or "class_embedder" to CompVis'.

    `names` are those in the checkpoint; those of other networks are left out. `config` is the network's in diffusers.
    """
    own = [name for name in names if name.startswith(_PREFIXES[component])]
    if component == "unet":
        return dict(convert_ldm_unet_checkpoint({name: name for name in own}, config))
    if component == "vqvae":
        return _autoencoder_names(own, config)
    return {name.removeprefix(CLASSES): name for name in own}


class _Name(str):
    """A name with the shape of a tensor, so that diffusers' conversion of weights can convert names instead."""

    __slots__ = ()
    shape = ()


def _autoencoder_names(own: list[str], config: Mapping[str, Any]) -> dict[str, str]:
    """Add to diffusers' conversion what it does not know: the codebook, and attention outside of the middle."""
    levels = [name.removeprefix(_FIRST_STAGE) for name in own if re.search(r"\.(down|up)\.\d+\.attn\.", name)]
    rest = {name: _Name(name) for name in own if name.removeprefix(_FIRST_STAGE) not in levels}
    found: dict[str, str] = convert_ldm_vae_checkpoint(rest, config)
    for name in levels:
        side, level = re.match(r"\w+\.(down|up)\.(\d+)", name).groups()  # type: ignore[union-attr]
        block = int(level) if side == "down" else len(config["up_block_types"]) - 1 - int(level)
        mapping = {"old": f"{side}.{level}.attn", "new": f"{side}_blocks.{block}.attentions"}
        update_vae_attentions_ldm_to_diffusers([name], found, {name: _Name(_FIRST_STAGE + name)}, mapping)
    codebook = "quantize.embedding.weight"
    if _FIRST_STAGE + codebook in own:
        found[codebook] = _FIRST_STAGE + codebook
    return {name: str(theirs) for name, theirs in found.items()}


def _sampling_weights(state: dict[str, Tensor], config: LdmConfig) -> dict[str, Tensor]:
    """The weights to sample with: the U-Net's moving average in place of its weights if the configuration says so."""
    kept = {name: value for name, value in state.items() if not name.startswith(_FOR_TRAINING)}
    if config.has_ema:
        names = [name for name in kept if name.startswith(_UNET)]
        averages = {name: _EMA + name.removeprefix("model.").replace(".", "") for name in names}
        kept |= {name: state[average] for name, average in averages.items() if average in state}
    return kept


def _filled(component: str, network: Component, state: dict[str, Tensor], misfits: Misfits) -> Any:
    """Build a network, fill in its weights, and note the weights that do not fit."""
    model = on_meta(*network)
    names = names_of(component, state, network[2])
    given: dict[str, Tensor] = {}
    for name, wanted in model.state_dict().items():
        if name not in names:
            misfits["missing"].append(f"the {component}'s {name}")
            continue
        tensor = state[names[name]]
        is_pointwise = wanted.dim() == 2 and tensor.shape == (*wanted.shape, 1, 1)  # a linear layer in diffusers
        given[name] = tensor.flatten(1) if is_pointwise else tensor
        if given[name].shape != wanted.shape:
            misfits["of another shape"].append(f"{names[name]}: {tuple(tensor.shape)} for {tuple(wanted.shape)}")
    used = {names[name] for name in given}
    misfits["unexpected"] += [name for name in state if name.startswith(_PREFIXES[component]) and name not in used]
    if not misfits["missing"] and not misfits["of another shape"]:
        model.load_state_dict(given, assign=True)
        model.requires_grad_(requires_grad=False).eval()
    return model
