"""Inception, as FID knows it: torch-fidelity's port of the network of 2015, with sFID's features beside."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepcache.errors import DeepCacheError, first_line, needs
from deepcache.metrics.extractors import Features, as_array
from deepcache.metrics.images import as_bytes
from deepcache.metrics.sources import INCEPTION_URL, inception_in_cache
from deepcache.models.checkpoint import weights

SPATIAL_CHANNELS = 7  # of 192, at 17 x 17: 2023 values
_LAYERS = ["2048", "logits_unbiased"]


@dataclass(frozen=True, eq=False)
class Inception:
    """`pooled` is pool_3 (2048); `probabilities` the softmax of the logits without bias (1008), as the original score.

    `spatial` are sFID's features: `mixed_6/conv` of the original graph, the 1x1 branch of `Mixed_6d` here, its first 7
    channels in the order (height, width, channel) in which that graph's tensors lie, as references hold them.

    References: Generating Images with Sparse Representations (Nash et al., 2021), https://arxiv.org/abs/2103.03841
    """

    network: Any
    device: torch.device
    name: str = "Inception"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        with _spatial(self.network) as kept, _float32():
            pooled, logits = self.network(as_bytes(images).to(self.device))
        spatial = kept[0][:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)  # (B, 2023)
        return Features(as_array(pooled), as_array(spatial), as_array(logits.softmax(dim=1)))


def load_inception(path: Path | None = None, *, device: str | torch.device = "cpu") -> Inception:
    """From a file, or from torch.hub's cache; nothing is ever downloaded.

    Raises:
        DeepCacheError: torch-fidelity is not installed, or the weights are not there or do not fit.
    """
    with needs("Inception", "metrics"):
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    path = path or inception_in_cache()
    if not os.path.isfile(path):
        raise DeepCacheError(
            f"expected Inception's weights in {path}, where they are not; get them from {INCEPTION_URL}"
        )
    weights(path)  # which refuses what carries code; torch-fidelity reads it again without this care
    try:
        network = FeatureExtractorInceptionV3("inception", _LAYERS, feature_extractor_weights_path=str(path))
    except (RuntimeError, TypeError, AttributeError) as error:
        raise DeepCacheError(
            f"expected Inception's weights in {path}, which do not fit ({first_line(error)})"
        ) from error
    return Inception(network.to(device), torch.device(device))


@contextmanager
def _float32() -> Iterator[None]:
    """Within the block, GPUs multiply float32 as such; from Ampere on, convolutions would round to TF32's ten bits."""
    backends: list[Any] = [torch.backends.cudnn.conv, torch.backends.cuda.matmul]  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


@contextmanager
def _spatial(network: Any) -> Iterator[list[Tensor]]:
    """Within the block, what the 1x1 branch of `Mixed_6d` puts out."""
    kept: list[Tensor] = []
    handle = network.Mixed_6d.branch1x1.register_forward_hook(lambda module, args, output: kept.append(output))  # noqa: ARG005
    try:
        yield kept
    finally:
        handle.remove()
