"""What is sampled, and how: a `Workload` is a pipeline with its conditions, a `Sampling` the solver, steps and plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass, field
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
from deepcache.costs.parts import pixels_a_side
from deepcache.errors import DeepCacheError
from deepcache.models.registry import MODELS
from deepcache.plan import MOST_STEPS, CachePlan, Interval, require_whole
from deepcache.sampling.conditions import Conditions
from deepcache.sampling.manifest import SHARD_SIZE, Manifest
from deepcache.sampling.samples import sample
from deepcache.sampling.schedulers import num_calls, num_calls_of, scheduler
from deepcache.unets.calls import sides

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SCALED = ("euler", "heun")  # solvers in noise levels, whose latents a pipeline must scale


@dataclass(frozen=True)
class Sampling:
    """How a workload's seeds become samples.

    Attributes:
        scheduler: name of the solver, a key of `SCHEDULERS`; None for the pipeline's own.
        num_steps: steps of the solver, 1 to `MOST_STEPS`; some solvers call the U-Net more often.
        plan: which U-Net calls are full; None for no cache.

    Raises:
        DeepCacheError: `num_steps` is out of range.
    """

    scheduler: str | None
    num_steps: int
    plan: CachePlan | Interval | None = None

    def __post_init__(self) -> None:
        require_whole("num_steps", self.num_steps, at_least=1, at_most=MOST_STEPS)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments that a pipeline's call takes for it."""
        return {"num_inference_steps": self.num_steps}


@dataclass(eq=False)
class Workload:
    """A pipeline, what its samples show, and how many are sampled together.

    Attributes:
        pipe: a diffusers pipeline with its own scheduler, on any device.
        conditions: a function from seeds to the pipeline's arguments for them, as `conditions_of` gives.
        batch_size: how many samples run together.
        arguments: the pipeline's arguments that are the same for all samples, such as `guidance_scale`.
        model: the model's name, or where it was loaded from.
        weights: "trained" or "random".
        is_halved: whether a batch that is too large for the memory is halved, instead of refused.

    Raises:
        DeepCacheError: the guidance scale is no finite number.
    """

    pipe: Any
    conditions: Conditions
    batch_size: int
    arguments: Mapping[str, Any] = field(default_factory=dict)
    model: str = ""
    weights: str = "trained"
    is_halved: bool = False

    def __post_init__(self) -> None:
        scale = self.guidance_scale
        if isinstance(scale, float) and not isfinite(scale):
            raise DeepCacheError(f"expected a finite guidance scale, got {scale}; 1 is no guidance")
        self._config = self.pipe.scheduler.config

    @property
    def guidance_scale(self) -> float | None:
        """The scale of classifier-free guidance; None where the pipeline's own counts, or there is no guidance."""
        return self.arguments.get("guidance_scale")

    @property
    def is_trained(self) -> bool:
        """Whether the images mean something."""
        return self.weights != "random"

    @cached_property
    def weights_hash(self) -> str:
        """The `weights_hash` of the pipeline, which no sampling changes."""
        return weights_hash(self.pipe)

    def num_calls(self, sampling: Sampling) -> int:
        """Return the number of U-Net calls of a generation.

        Raises:
            DeepCacheError: the solver is unknown, or cannot do that number of steps.
        """
        if sampling.scheduler is None:
            own = self.pipe.scheduler
            return num_calls_of(deepcopy(own), sampling.num_steps, type(own).__name__)
        return num_calls(sampling.scheduler, self._config, sampling.num_steps)

    @contextmanager
    def under(self, sampling: Sampling) -> Iterator[Cache | None]:
        """Within the block, the pipeline has the sampling's solver, and its U-Net the sampling's plan."""
        own = self.pipe.scheduler
        if sampling.scheduler is not None:
            self.pipe.scheduler = scheduler(sampling.scheduler, self._config)
        try:
            with nullcontext() if sampling.plan is None else cached(self.pipe, sampling.plan) as cache:
                yield cache
        finally:
            self.pipe.scheduler = own

    def sample(self, seeds: Sequence[int], **options: Any) -> Tensor:
        """Sample the pipeline as it is now; the steps are among the options, and `under` sets the rest of a sampling.

        Args:
            seeds: the seeds, one a sample.
            **options: arguments of `samples.sample` or of the pipeline, in place of the workload's own.

        Returns:
            (B, 3, H, W) in 0..1, float32, on the CPU.
        """
        own = {"batch_size": self.batch_size, "conditions": self.conditions, **self.arguments}
        return sample(self.pipe, seeds, **{**own, **options})

    def manifest(
        self, sampling: Sampling, *, shard_size: int = SHARD_SIZE, made_with: Mapping[str, Any] | None = None
    ) -> Manifest:
        """Return what tells the samples of this workload from other samples.

        Args:
            sampling: how the workload is sampled, by a named solver; a plan is a `CachePlan`.
            shard_size: how many samples a file has.
            made_with: facts about the first writer, beside the versions and the device.
        """
        assert sampling.scheduler is not None
        assert not isinstance(sampling.plan, Interval)
        config = scheduler(sampling.scheduler, self._config).config
        return Manifest(
            model=Path(self.model).name,
            weights=f"{self.weights} sha256:{self.weights_hash}",
            scheduler=sampling.scheduler,
            scheduler_config={key: value for key, value in config.items() if not key.startswith("_")},
            num_steps=sampling.num_steps,
            guidance_scale=self.guidance_scale,
            conditions=self.conditions.rule,  # type: ignore[attr-defined]  # a function of a user's own has none
            plan=None if sampling.plan is None else asdict(sampling.plan),
            dtype=next(name for name, dtype in DTYPES.items() if dtype == self.pipe.unet.dtype),
            image_size=image_size_of(self.pipe),
            batch_size=self.batch_size,
            shard_size=shard_size,
            made_with={**_versions(self.pipe.unet.device), **(made_with or {})},
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

    Args:
        model: the model's name; a model without a protocol must be told the solver, its steps and the guidance scale.
        pipe: the model's pipeline.
        conditions: what the samples show.
        scheduler: name of the solver.
        num_steps: steps of the solver.
        guidance_scale: the scale of classifier-free guidance, for a pipeline that takes it.
        batch_size: how many samples run together; without a protocol `SHARD_SIZE` if not given.
        **more: attributes of the `Workload`.

    Raises:
        DeepCacheError: the model has no protocol and too little is asked, the pipeline takes no guidance scale, or it
            cannot be sampled by that solver.
    """
    asked = {"scheduler": scheduler, "num_steps": num_steps, "guidance_scale": guidance_scale}
    given = {name: value for name, value in asked.items() if value is not None}
    is_guided = "guidance_scale" in signature(pipe.__call__).parameters
    if guidance_scale is not None and not is_guided:
        raise DeepCacheError(f"expected no guidance scale, which {type(pipe).__name__} does not take; leave it out")
    names = [name for name in asked if is_guided or name != "guidance_scale"]
    known = MODELS.get(model)
    protocol = None if known is None else known.protocol
    if protocol is None and len(given) < len(names):
        options = ", ".join(f"--{name.replace('_', '-')}" for name in names if name not in given)
        raise DeepCacheError(f"expected {options}, since {model} has no protocol; protocols are of {', '.join(MODELS)}")
    found: dict[str, Any] = {name: given.get(name, getattr(protocol, name, None)) for name in names}
    if type(pipe).__name__ == "DDPMPipeline" and found["scheduler"] in SCALED:
        raise DeepCacheError(
            "expected a scheduler whose noise begins at standard deviation 1, since DDPMPipeline scales nothing, got "
            f"{found['scheduler']}; take ddim, ddim-quadratic, plms, pndm or dpm-solver++"
        )
    scale = found.pop("guidance_scale", None)
    arguments = {} if scale is None else {"guidance_scale": scale}
    size = batch_size or (protocol.batch_size if protocol else SHARD_SIZE)
    return Workload(pipe, conditions, size, arguments, model=model, **more), Sampling(**found)


def weights_hash(pipe: Any) -> str:
    """Return the SHA-256 of all parameters and buffers of a pipeline's networks, with their names and shapes."""
    digest = sha256()
    for name, network in sorted(pipe.components.items()):
        if isinstance(network, nn.Module):
            for key, tensor in sorted(network.state_dict().items()):
                digest.update(f"{name}.{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def image_size_of(pipe: Any) -> list[int]:
    """Return height and width of the images that a pipeline samples unless it is told another size.

    Raises:
        DeepCacheError: the U-Net's configuration has no size.
    """
    height, width = sides(pipe.unet.config.sample_size)
    side = pixels_a_side(pipe)
    return [height * side, width * side]


def _versions(device: torch.device) -> dict[str, str]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"deepcache": __version__, "torch": torch.__version__, "diffusers": diffusers.__version__, "device": name}
