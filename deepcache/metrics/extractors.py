"""Extractors turn images into features: Inception, and mini-features, which stands in for it on embedded models."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepcache.errors import DeepCacheError, needs
from deepcache.metrics.archives import readable
from deepcache.metrics.images import Images, as_bytes
from deepcache.metrics.registry import INCEPTION_FILE, INCEPTION_URL, in_torch_cache
from deepcache.metrics.statistics import Features
from deepcache.models.checkpoint import weights
from deepcache.models.embedded import EXTRACTOR, SIZE, MiniFeatures, load_extractor

SPATIAL_CHANNELS = 7  # of 192, at 17 x 17: 2023 values
_LAYERS = ["2048", "logits_unbiased"]  # torch-fidelity's names of pool_3 and of the logits without bias


class Extractor(Protocol):
    """A network that turns images (B, 3, H, W) in 0..1 into features, under a name that records keep."""

    @property
    def name(self) -> str: ...

    def __call__(self, images: Tensor) -> Features: ...


@dataclass(frozen=True, eq=False)
class MiniExtractor:
    """mini-features, a small classifier of garments, for images of 32 x 32."""

    model: MiniFeatures
    name: str = EXTRACTOR

    @classmethod
    def load(cls, device: str | torch.device = "cpu") -> MiniExtractor:
        return cls(load_extractor().to(device))

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        if images.shape[2:] != SIZE:
            size = tuple(images.shape[2:])
            raise DeepCacheError(f"expected images of 32 x 32 for {self.name}, got {size}; Inception takes larger ones")
        found = self.model(images.to(self.model.device) * 2 - 1)
        return Features(_array(found.pooled), _array(found.spatial), _array(found.garment.softmax(dim=1)))


@dataclass(frozen=True, eq=False)
class Inception:
    """The Inception network of 2015 by which FID is defined, in torch-fidelity's port.

    `pooled` is pool_3 (B, 2048); `probabilities` (B, 1008) are the softmax of the logits without bias, as in the
    original Inception score. `spatial` (B, 2023) are sFID's features: `mixed_6/conv` of the original graph is the 1x1
    branch of `Mixed_6d` here; its first 7 channels are kept in the order (height, width, channel) of that graph's
    tensors, in which references hold them.

    References: Generating Images with Sparse Representations (Nash et al., 2021), https://arxiv.org/abs/2103.03841
    """

    network: Any
    device: torch.device
    name: str = "Inception"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        kept: list[Tensor] = []
        branch = self.network.Mixed_6d.branch1x1
        with branch.register_forward_hook(lambda *call: kept.append(call[-1])), _float32():
            pooled, logits = self.network(as_bytes(images).to(self.device))
        spatial = kept[0][:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)  # (B, 2023)
        return Features(_array(pooled), _array(spatial), _array(logits.softmax(dim=1)))


def load_inception(path: Path | None = None, *, device: str | torch.device = "cpu") -> Inception:
    """Load Inception from torch-fidelity's file of the weights, or from torch.hub's cache; nothing is downloaded.

    Raises:
        DeepCacheError: torch-fidelity is not installed, or the weights are not there or do not fit.
    """
    with needs("Inception", "metrics"):
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    path = path or in_torch_cache(INCEPTION_FILE)
    if not os.path.isfile(path):
        raise DeepCacheError(f"expected Inception's weights in {path}, which is no file; get them from {INCEPTION_URL}")
    weights(path)  # refuses a file that carries code; torch-fidelity then reads the file without this care
    with readable(path, "Inception's weights", "do not fit"):
        network = FeatureExtractorInceptionV3("inception", _LAYERS, feature_extractor_weights_path=str(path))
    return Inception(network.to(device), torch.device(device))


def extract(extractor: Extractor, images: Images, *, batch_size: int = 250) -> Features:
    """Extract the features of all images."""
    found = [extractor(part) for part in images.split(batch_size)]
    return Features(*(np.concatenate([getattr(part, field.name) for part in found]) for field in fields(Features)))


def _array(values: Tensor) -> NDArray[np.float32]:
    return values.float().cpu().numpy()


@contextmanager
def _float32() -> Iterator[None]:
    """Have GPUs multiply float32 as such; from Ampere on, convolutions would round their inputs to TF32's ten bits."""
    backends: list[Any] = [torch.backends.cudnn.conv, torch.backends.cuda.matmul]  # type: ignore[attr-defined]
    with ExitStack() as settings:
        for backend in backends:
            settings.callback(setattr, backend, "fp32_precision", backend.fp32_precision)
            backend.fp32_precision = "ieee"
        yield
