"""Workloads and references as the options ask for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from workload import Workload

from deepcache import models
from deepcache.errors import DeepCacheError
from deepcache.metrics import reference as references
from deepcache.metrics.clip_score import load_clip
from deepcache.metrics.extractors import MiniExtractor
from deepcache.models import EMBEDDED
from deepcache.sampling.protocols import PROTOCOLS, Protocol

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
CHANGES = ("num_samples", "num_steps", "batch_size")  # of a protocol, by options of these names


def load_workload(model: str, config: Any) -> Workload:
    """A model with what measures it.

    Raises:
        DeepCacheError: the model or an extractor is not there.
    """
    protocol = _protocol(model, config)
    if model in EMBEDDED:
        clip = load_clip() if protocol.is_prompted else None
        return Workload(model, models.load(model), MiniExtractor.load(), clip, protocol)
    raise DeepCacheError(model)


def load_reference(model: str, config: Any) -> references.Reference:
    """Statistics of the images that a model was trained on."""
    return references.load()


def _protocol(model: str, config: Any) -> Protocol:
    asked = {name: config.getoption(name) for name in CHANGES}
    return replace(PROTOCOLS[model], **{name: value for name, value in asked.items() if value})
