"""This module loads workloads, extractors and references as pytest's options ask for them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from bench.harness import requirements
from bench.harness.scales import device_of
from bench.harness.workload import Workload
from deepcache import models
from deepcache.errors import DeepCacheError
from deepcache.metrics import reference as references
from deepcache.metrics.clip_score import PAPER, Clip, load_clip
from deepcache.metrics.extractors import Extractor, MiniExtractor, load_inception
from deepcache.metrics.perceptual import Perceptual, load_perceptual
from deepcache.metrics.statistics import Statistics
from deepcache.models.registry import EMBEDDED, MODELS, Protocol
from deepcache.sampling.conditions import prompts_in
from deepcache.sampling.workload import DTYPES

CHANGES = ("num_samples", "num_steps", "batch_size")  # attributes of a protocol that options of these names change
_BATCH = 250  # real images that an extractor measures at once
STORES = Path("samples")  # stores at the paper's scale, unless the command line names a folder


def load_workload(model: str, config: Any) -> Workload:
    """Return a model's workload with what measures it.

    Args:
        model: the model's name.
        config: pytest's configuration.

    Raises:
        DeepCacheError: the model's files or those of its extractors are missing.
    """
    protocol, device = _protocol(model, config), device_of(config)
    dtype = DTYPES[config.getoption("dtype") or _usual_dtype(protocol, model, device)]
    if config.getoption("weights") == "random":
        if model in EMBEDDED:
            raise DeepCacheError("expected --scale paper with --weights random; the embedded models are trained")
        pipe = models.load(model, weights="random", dtype=dtype, device=device)
        prompts = ("what noise shows",) if protocol.is_prompted else None
        return Workload.of(model, pipe, protocol, prompts=prompts, weights="random")
    pipe = models.load(model, dtype=dtype, device=device)
    more: dict[str, Any] = {"extractor": load_extractor(model, config), "stores": config.getoption("store")}
    more["is_halved"] = config.getoption("batch_size") in (None, "auto")
    if model in EMBEDDED:
        clip = load_clip(device=device) if protocol.is_prompted else None
        return Workload.of(model, pipe, protocol, clip=clip, **more)
    more["stores"] = more["stores"] or STORES
    if protocol.is_prompted:
        path = requirements.captions(config).located()
        more["prompts"], more["prompts_from"] = tuple(prompts_in(path)), path.name
        # every prompt is sampled once
        protocol = replace(protocol, num_samples=config.getoption("num_samples") or len(more["prompts"]))
        more["clip"] = _paper_clip(device)
    return Workload.of(model, pipe, protocol, **more)


def load_extractor(model: str, config: Any) -> Extractor:
    """Return mini-features for an embedded model, else Inception."""
    device = device_of(config)
    if model in EMBEDDED:
        return MiniExtractor.load(device)
    return _inception(device)


@cache
def _inception(device: str) -> Extractor:
    return load_inception(requirements.inception().located(), device=device)


@cache
def _paper_clip(device: str) -> Clip:
    return load_clip(PAPER[0], checkpoint=requirements.clip().located(), device=device)


def load_distance(config: Any) -> Perceptual:
    """Return LPIPS where its weights are found, else mini-features' distance; at paper scale LPIPS is required."""
    return load_perceptual(requirements.alexnet().found(), device=device_of(config))


def load_reference(model: str, config: Any) -> references.Reference:
    """Return statistics of the images that a model was trained on."""
    device = device_of(config)
    if model in EMBEDDED:
        return references.load().on(device)
    extractor = load_extractor(model, config)
    path = requirements.reference(model).located()
    return references.find(path, lambda images: Statistics.of(map(extractor, images.split(_BATCH)))).on(device)


def _usual_dtype(protocol: Protocol, model: str, device: str) -> str:
    """Return fp16 for prompted models of the paper on a GPU, as the paper ran Stable Diffusion; else fp32."""
    return "fp16" if protocol.is_prompted and model not in EMBEDDED and device.startswith("cuda") else "fp32"


def _protocol(model: str, config: Any) -> Protocol:
    asked = {name: config.getoption(name) for name in CHANGES}
    changes = {name: value for name, value in asked.items() if value not in (None, "auto")}
    return replace(MODELS[model].protocol, **changes)
