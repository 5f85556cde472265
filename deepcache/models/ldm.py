"""CompVis' checkpoints of class-conditional latent diffusion (LDM-4-G: cin256-v2), as diffusers pipelines."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from deepcache.errors import DeepCacheError, shown
from deepcache.files import as_path
from deepcache.models.checkpoint import weights
from deepcache.models.class_conditional import ClassConditionalPipeline
from deepcache.models.folders import moved
from deepcache.models.ldm_config import CIN256_V2, LdmConfig, read_config, scheduler_config
from deepcache.models.ldm_names import FIRST_STAGE, PARTS, UNET, averaged
from deepcache.models.networks import Network, ldm_networks, on_meta

_OF_THE_TRAINING = (f"{FIRST_STAGE}loss.", f"{FIRST_STAGE}model_ema.")  # not for sampling
_SCHEDULES_AGREE = 1e-4  # both multiply 1000 factors, diffusers in float32


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

    The U-Net gets the averaged weights (`model_ema`) where the configuration says `use_ema` and they are there, as
    CompVis' samplers do; cin256-v2 says no. The last class stands for no class.

    Args:
        checkpoint: a `.ckpt` or `.safetensors` file. Nothing in it is ever run.
        config: CompVis' YAML; that of cin256-v2 if None.
        dtype: of the pipeline's weights.
        device: where they go.

    Raises:
        DeepCacheError: a file that cannot be read, carries code, or holds the weights of another architecture; a
            configuration that cannot be read or lacks a field.

    References: High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2022),
    https://github.com/CompVis/latent-diffusion
    """
    found = CIN256_V2 if config is None else read_config(as_path(config, "CompVis' YAML"))
    return moved(ldm_pipeline(weights(as_path(checkpoint, "a checkpoint")), str(checkpoint), found), dtype, device)  # type: ignore[no-any-return]


def ldm_pipeline(state: dict[str, Tensor], checkpoint: str, config: LdmConfig = CIN256_V2) -> ClassConditionalPipeline:
    """From the weights of a checkpoint, on the CPU.

    Raises:
        DeepCacheError: the weights of another architecture.
    """
    state = _sampling(state, config)
    scheduler = DDIMScheduler.from_config(scheduler_config(config))
    misfits = _Misfits(checkpoint, config.source)
    networks = {part: _filled(part, network, state, misfits) for part, network in _networks(config, state).items()}
    misfits.refuse()
    _require_schedule(scheduler, state, checkpoint, config)
    return ClassConditionalPipeline(**networks, scheduler=scheduler)


def _sampling(state: dict[str, Tensor], config: LdmConfig) -> dict[str, Tensor]:
    """What is sampled with: the averaged weights in place of the U-Net's own where the configuration says so."""
    kept = {name: value for name, value in state.items() if not name.startswith(_OF_THE_TRAINING)}
    if config.has_ema:
        kept |= {name: state[averaged(name)] for name in kept if name.startswith(UNET) and averaged(name) in state}
    return kept


def _networks(config: LdmConfig, state: dict[str, Tensor]) -> dict[str, Network]:
    found = ldm_networks(config)
    if "scale_factor" in state:  # measured in the training
        factor = state["scale_factor"]
        if factor.numel() != 1 or not factor.is_floating_point() or not 0 < float(factor) < math.inf:
            raise DeepCacheError(f"expected scale_factor to be a number above 0, got {shown(factor)}; correct the file")
        found["vqvae"][2]["scaling_factor"] = float(factor)
    return found


@dataclass
class _Misfits:
    """Weights that are not there, that nothing takes, and whose shape is another."""

    checkpoint: str
    source: str
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)

    def refuse(self) -> None:
        """Raise if there are any."""
        kinds = {"missing": self.missing, "unexpected": self.unexpected, "of another shape": self.misshapen}
        told = [f"{len(names)} {kind} (the first: {names[0]})" for kind, names in kinds.items() if names]
        if told:
            raise DeepCacheError(
                f"expected the weights of {self.source} in {self.checkpoint}, got {', '.join(told)}; "
                "pass the checkpoint's own YAML as the configuration"
            )


def _filled(part: str, network: Network, state: dict[str, Tensor], misfits: _Misfits) -> Any:
    """A network with its weights, and what does not fit noted."""
    prefix, names_of = PARTS[part]
    model = on_meta(*network)
    names = names_of(state, network[2])
    given: dict[str, Tensor] = {}
    for name, wanted in model.state_dict().items():
        if name not in names:
            misfits.missing.append(f"the {part}'s {name}")
            continue
        tensor = state[names[name]]
        given[name] = tensor.flatten(1) if _is_pointwise(tensor.shape, wanted.shape) else tensor
        if given[name].shape != wanted.shape:
            misfits.misshapen.append(f"{names[name]}: {tuple(tensor.shape)} for {tuple(wanted.shape)}")
    used = {names[name] for name in given}
    misfits.unexpected += [name for name in state if name.startswith(prefix) and name not in used]
    return model if misfits.missing or misfits.misshapen else _loaded(model, given)


def _loaded(model: Any, given: dict[str, Tensor]) -> Any:
    model.load_state_dict(given, assign=True)
    return model.requires_grad_(requires_grad=False).eval()


def _is_pointwise(found: torch.Size, wanted: torch.Size) -> bool:
    """A convolution of 1 x 1 where diffusers has a linear layer."""
    return len(wanted) == len("oi") and found == (*wanted, 1, 1)


def _require_schedule(scheduler: DDIMScheduler, state: dict[str, Tensor], checkpoint: str, config: LdmConfig) -> None:
    theirs = state.get("alphas_cumprod")
    ours = scheduler.alphas_cumprod
    if theirs is not None and (theirs.shape != ours.shape or (theirs - ours).abs().max() > _SCHEDULES_AGREE):
        raise DeepCacheError(
            f"expected the noise schedule of {config.source} in {checkpoint}, got another; "
            "pass the checkpoint's own YAML as the configuration"
        )
