"""What tells a pipeline's samples from another's: its manifest."""

from __future__ import annotations

from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

from deepcache import __version__
from deepcache.costs.parts import pixels_a_side
from deepcache.plan import CachePlan
from deepcache.sampling.manifest import SHARD_SIZE, Manifest
from deepcache.sampling.settings import Settings
from deepcache.unets.calls import sides

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def manifest_of(
    pipe: Any,
    settings: Settings,
    plan: CachePlan | None,
    conditions: str,
    *,
    model: str,
    weights: str = "trained",
    digest: str | None = None,
    batch_size: int,
    shard_size: int = SHARD_SIZE,
    made_with: dict[str, Any] | None = None,
) -> Manifest:
    """Of the samples of a pipeline.

    Args:
        pipe: on any device, with its scheduler, in the dtype that it samples in.
        settings: with the name of `pipe.scheduler`.
        plan: None for no cache.
        conditions: the `rule` of what `conditions_of` gives.
        model: its name, or where it was loaded from, of which the last part counts.
        weights: "trained" or "random".
        digest: `weights_hash` of the pipeline, where it is known.
        batch_size: how many samples run together.
        shard_size: how many samples a file has.
        made_with: what else the store is to say of its first writer; versions and the device are added.
    """
    return Manifest(
        model=Path(model).name,
        weights=f"{weights} sha256:{digest or weights_hash(pipe)}",
        scheduler_config={key: value for key, value in pipe.scheduler.config.items() if not key.startswith("_")},
        conditions=conditions,
        plan=None if plan is None else asdict(plan),
        dtype=next(name for name, dtype in DTYPES.items() if dtype == pipe.unet.dtype),
        image_size=image_size_of(pipe),
        batch_size=batch_size,
        shard_size=shard_size,
        made_with={**_versions(pipe.unet.device), **(made_with or {})},
        **asdict(settings),
    )


def weights_hash(pipe: Any) -> str:
    """SHA-256 of all parameters and buffers of all networks of a pipeline, with their names and shapes."""
    digest = sha256()
    for name, network in sorted(pipe.components.items()):
        if isinstance(network, nn.Module):
            for key, tensor in sorted(network.state_dict().items()):
                digest.update(f"{name}.{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def image_size_of(pipe: Any) -> list[int]:
    """Height and width of what the pipeline samples if it is not told otherwise.

    Raises:
        DeepCacheError: the U-Net's configuration has no size.
    """
    height, width = sides(pipe.unet.config.sample_size)
    side = pixels_a_side(pipe)
    return [height * side, width * side]


def _versions(device: torch.device) -> dict[str, str]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"deepcache": __version__, "torch": torch.__version__, "diffusers": diffusers.__version__, "device": name}
