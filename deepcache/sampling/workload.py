"""What is sampled, and how: a `Workload` is a pipeline with its conditions, a `Sampling` the solver, steps and plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from inspect import signature
from math import isfinite
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from deepcache import __version__
from deepcache.cache.caching import Cache, cached
from deepcache.cache.installing import is_installed
from deepcache.costs.parts import pixels_a_side
from deepcache.errors import DeepCacheError
from deepcache.models.registry import MODELS
from deepcache.plan import MOST_STEPS, CachePlan, Interval, require_whole, told
from deepcache.sampling.conditions import Conditions
from deepcache.sampling.manifest import SHARD_SIZE, Manifest
from deepcache.sampling.samples import sample
from deepcache.sampling.schedulers import num_calls, scheduler
from deepcache.unets.calls import sides
from deepcache.unets.pipelines import unet_of

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SCALED = ("euler", "euler-ancestral", "heun")  # solvers in noise levels, whose latents a pipeline must scale


@dataclass(frozen=True)
class Sampling:
    """How a workload's seeds become samples."""

    scheduler: str | None  # name of the solver, a key of `SCHEDULERS`; None for the pipeline's own
    num_steps: int  # steps of the solver, 1 to `MOST_STEPS`; some solvers call the U-Net more often
    plan: CachePlan | Interval | None = None  # which U-Net calls are full; None for no cache

    def __post_init__(self) -> None:
        require_whole("num_steps", self.num_steps, at_least=1, at_most=MOST_STEPS)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments that set this sampling in a pipeline's call."""
        return {"num_inference_steps": self.num_steps}


@dataclass(eq=False)
class Workload:
    """A pipeline, what its samples show, and how many are sampled together."""

    pipe: Any  # a diffusers pipeline with its own scheduler, on any device
    conditions: Conditions  # a function from seeds to the pipeline's arguments for them, as `conditions_of` gives
    batch_size: int  # how many samples run together
    arguments: Mapping[str, Any] = field(default_factory=dict)  # of the pipeline, the same for all samples
    model: str = ""  # the model's name, or where it was loaded from
    weights: str = "trained"  # or "random"
    is_halved: bool = False  # whether a batch that is too large for the memory is halved, instead of refused

    def __post_init__(self) -> None:
        scale = self.guidance_scale
        if isinstance(scale, float) and not isfinite(scale):
            raise DeepCacheError(f"expected a finite guidance scale, got {scale}; 1 is no guidance")
        self._config = self.pipe.scheduler.config

    @property
    def guidance_scale(self) -> float | None:
        """The scale of classifier-free guidance, a finite number; None for the pipeline's own, or for no guidance."""
        return self.arguments.get("guidance_scale")

    @property
    def is_trained(self) -> bool:
        """True for trained weights; images of random weights are noise."""
        return self.weights != "random"

    @cached_property
    def weights_hash(self) -> str:
        """The SHA-256 of all parameters and buffers of the pipeline's networks, with their names and shapes."""
        digest = sha256()
        for name, network in sorted(self.pipe.components.items()):
            if isinstance(network, nn.Module):
                for key, tensor in sorted(network.state_dict().items()):
                    digest.update(f"{name}.{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def num_calls(self, sampling: Sampling) -> int:
        """Return the number of U-Net calls of a generation; refuse an unknown solver, or steps that it cannot do."""
        name, own = sampling.scheduler, self.pipe.scheduler
        solver = deepcopy(own) if name is None else scheduler(name, self._config)
        return num_calls(solver, sampling.num_steps, name or type(own).__name__)

    @contextmanager
    def under(self, sampling: Sampling) -> Iterator[Cache | None]:
        """Within the block, the pipeline has the sampling's solver, and its U-Net the sampling's plan."""
        if sampling.plan is None and is_installed(unet_of(self.pipe)[1]):
            raise DeepCacheError(
                "expected a pipeline without a cache, whose samples are to be uncached; leave the block of "
                "deepcache.cached, or disable the cache, before"
            )
        own = self.pipe.scheduler
        if sampling.scheduler is not None:
            self.pipe.scheduler = scheduler(sampling.scheduler, self._config)
        try:
            with nullcontext() if sampling.plan is None else cached(self.pipe, sampling.plan) as cache:
                yield cache
        finally:
            self.pipe.scheduler = own

    def sample(self, seeds: Sequence[int], **options: Any) -> Tensor:
        """Sample the pipeline as it is now, by `samples.sample`; the options go before the workload's own arguments."""
        own = {"batch_size": self.batch_size, "conditions": self.conditions, **self.arguments}
        return sample(self.pipe, seeds, **{**own, **options})

    def manifest(self, sampling: Sampling, *, shard_size: int = SHARD_SIZE) -> Manifest:
        """Return what tells the samples of this workload, by a named solver and a `CachePlan`, from other samples."""
        assert sampling.scheduler is not None
        assert not isinstance(sampling.plan, Interval)
        config, device = scheduler(sampling.scheduler, self._config).config, self.pipe.unet.device
        return Manifest(
            model=Path(self.model).name,
            weights=f"{self.weights} sha256:{self.weights_hash}",
            scheduler=sampling.scheduler,
            scheduler_config={key: value for key, value in config.items() if not key.startswith("_")},
            num_steps=sampling.num_steps,
            guidance_scale=self.guidance_scale,
            conditions=self.conditions.rule,  # type: ignore[attr-defined]  # a function of a user's own has none
            plan=None if sampling.plan is None else told(sampling.plan),
            dtype=next(name for name, dtype in DTYPES.items() if dtype == self.pipe.unet.dtype),
            image_size=image_size_of(self.pipe),
            batch_size=self.batch_size,
            shard_size=shard_size,
            made_with={
                "deepcache": __version__,
                "torch": torch.__version__,
                "diffusers": diffusers.__version__,
                "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
                "threads": torch.get_num_threads(),
            },
        )


def by_protocol(
    model: str,
    pipe: Any,
    conditions: Conditions,
    *,
    scheduler: str | None = None,
    num_steps: int | None = None,
    guidance_scale: float | None = None,
    batch_size: int | None = None,
    **more: Any,
) -> tuple[Workload, Sampling]:
    """Return a model's workload and its uncached sampling: as asked, and for the rest as the model's protocol says.

    A model without a protocol must be told its solver, its steps and, if its pipeline takes one, the guidance scale; it
    runs `SHARD_SIZE` samples together unless it is told another batch size. `more` are attributes of the `Workload`.
    """
    asked: dict[str, Any] = {"scheduler": scheduler, "num_steps": num_steps}
    if "guidance_scale" in signature(pipe.__call__).parameters:
        asked["guidance_scale"] = guidance_scale
    elif guidance_scale is not None:
        raise DeepCacheError(f"expected no guidance scale, which {type(pipe).__name__} does not take; leave it out")
    protocol = MODELS[model].protocol if model in MODELS else None
    missing = [f"--{name.replace('_', '-')}" for name, value in asked.items() if value is None]
    if protocol is None and missing:
        raise DeepCacheError(
            f"expected {', '.join(missing)}, since {model} has no protocol; protocols are of {', '.join(MODELS)}"
        )
    found = {name: getattr(protocol, name) if value is None else value for name, value in asked.items()}
    if type(pipe).__name__ == "DDPMPipeline" and found["scheduler"] in SCALED:
        raise DeepCacheError(
            "expected a scheduler whose noise begins at standard deviation 1, since DDPMPipeline scales nothing, got "
            f"{found['scheduler']}; take ddim, ddim-quadratic, ddpm, plms, pndm or dpm-solver++"
        )
    scale = found.pop("guidance_scale", None)
    arguments = {} if scale is None else {"guidance_scale": scale}
    size = batch_size or (protocol.batch_size if protocol else SHARD_SIZE)
    return Workload(pipe, conditions, size, arguments, model=model, **more), Sampling(**found)


def image_size_of(pipe: Any) -> list[int]:
    """Return height and width of the images that a pipeline samples unless it is told another size."""
    scale = pixels_a_side(pipe)
    return [scale * side for side in sides(pipe.unet.config.sample_size)]
