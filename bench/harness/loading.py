"""Workloads and references as the options ask for them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from bench.harness import requirements
from bench.harness.scales import device_of
from bench.harness.workload import Workload
from deepcache import models
from deepcache.errors import DeepCacheError
from deepcache.metrics import reference as references
from deepcache.metrics.clip_score import PAPER, Clip, load_clip, load_named_clip
from deepcache.metrics.extractors import Extractor, MiniExtractor, batches, load_inception
from deepcache.metrics.perceptual import Perceptual, load_perceptual
from deepcache.metrics.statistics import Statistics
from deepcache.models import EMBEDDED
from deepcache.sampling.prompt_files import prompts_in
from deepcache.sampling.protocols import PROTOCOLS, Protocol

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
CHANGES = ("num_samples", "num_steps", "batch_size")  # of a protocol, by options of these names
STORES = Path("samples")  # of the paper's scale, where the command line names none


def load_workload(model: str, config: Any) -> Workload:
    """A model with what measures it.

    Raises:
        DeepCacheError: the model or what measures it is not there.
    """
    protocol, device = _protocol(model, config), device_of(config)
    dtype = DTYPES[config.getoption("dtype") or _usual_dtype(protocol, model, device)]
    if config.getoption("weights") == "random":
        if model in EMBEDDED:
            raise DeepCacheError("expected --scale paper with --weights random; the embedded models are trained")
        pipe = models.load(model, weights="random", dtype=dtype, device=device)
        prompts = ("what noise shows",) if protocol.is_prompted else None
        return Workload(model, pipe, None, None, protocol, weights="random", prompts=prompts)
    pipe = models.load(model, dtype=dtype, device=device)
    extractor, stores = load_extractor(model, config), config.getoption("store")
    is_halved = config.getoption("batch_size") in (None, "auto")
    if model in EMBEDDED:
        clip = load_clip(device=device) if protocol.is_prompted else None
        return Workload(model, pipe, extractor, clip, protocol, stores=stores, is_halved=is_halved)
    found = Workload(model, pipe, extractor, None, protocol, "trained", stores=stores or STORES, is_halved=is_halved)
    return _prompted(found, config) if protocol.is_prompted else found


def _prompted(workload: Workload, config: Any) -> Workload:
    """With the prompts of the paper or of `--prompts`, a sample each, and what scores them."""
    path = requirements.captions(config).located()
    prompts = tuple(prompts_in(path))
    protocol = replace(workload.protocol, num_samples=config.getoption("num_samples") or len(prompts))
    clip = _paper_clip(device_of(config))
    return replace(workload, clip=clip, protocol=protocol, prompts=prompts, prompts_from=path.name)


def load_extractor(model: str, config: Any) -> Extractor:
    """Inception, or mini-features for an embedded model."""
    device = device_of(config)
    if model in EMBEDDED:
        return MiniExtractor.load(device)
    return _inception(device)


@cache
def _inception(device: str) -> Extractor:
    """One for all models."""
    return load_inception(requirements.inception().located(), device=device)


@cache
def _paper_clip(device: str) -> Clip:
    """One for all models."""
    return load_named_clip(PAPER[0], requirements.clip().located(), device)


def load_distance(config: Any) -> Perceptual:
    """LPIPS where its weights are found, as the page of what is missing asks at paper scale, else mini-features'."""
    return load_perceptual(requirements.alexnet().found(), device=device_of(config))


def load_reference(model: str, config: Any) -> references.Reference:
    """Statistics of the images that a model was trained on."""
    device = device_of(config)
    if model in EMBEDDED:
        return references.load().on(device)
    extractor = load_extractor(model, config)
    path = requirements.reference(model).located()
    return references.find(path, lambda images: Statistics.of(batches(extractor, images))).on(device)


def _usual_dtype(protocol: Protocol, model: str, device: str) -> str:
    """The paper ran Stable Diffusion in half precision."""
    return "fp16" if protocol.is_prompted and model not in EMBEDDED and device.startswith("cuda") else "fp32"


def _protocol(model: str, config: Any) -> Protocol:
    asked = {name: config.getoption(name) for name in CHANGES}
    return replace(PROTOCOLS[model], **{name: value for name, value in asked.items() if value not in (None, "auto")})
