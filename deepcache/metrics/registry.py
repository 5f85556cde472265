"""The metrics: how each is called and printed, which direction is better, and what it is measured on.

A new metric is a value in the function of `fidelity.py` that has its inputs, and an entry in `METRICS`; `deepcache
metrics` and the benches then record it. This module imports neither torch nor numpy, so that tables can use it.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Inputs = Literal["reference", "features", "errors", "values", "one prompt"]


@dataclass(frozen=True)
class Metric:
    """A number that is measured on images, and how it is printed."""

    name: str  # without the unit
    digits: int  # that a table prints after the point
    inputs: Inputs  # what the metric is measured on, as the comments in `METRICS` say
    is_higher_better: bool | None  # None where neither direction is better
    unit: str = ""  # "dB", "%", or empty
    low: float = 0.0  # low and high are the ends of the range
    high: float = math.inf

    @property
    def title(self) -> str:
        """The name with the unit in brackets, as a table heads its column."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    @property
    def direction(self) -> str:
        """Which direction is better, after the range if the range is bounded and not that of a percentage."""
        words = {True: "higher is better", False: "lower is better", None: "neither direction is better"}
        is_bounded = math.isfinite(self.high) and self.unit != "%"
        return (f"{self.low:g}..{self.high:g}, " if is_bounded else "") + words[self.is_higher_better]


_LOWER: dict[str, Any] = {"is_higher_better": False}
_HIGHER: dict[str, Any] = {"is_higher_better": True}
_PERCENT: dict[str, Any] = {"unit": "%", "high": 100.0}
_PSNR: dict[str, Any] = {"is_higher_better": True, "unit": "dB", "high": 80.0}  # beyond 80 dB, rounding is compared
METRICS = {
    # samples against real images
    "fid": Metric("FID", 2, "reference", **_LOWER),
    "sfid": Metric("sFID", 2, "reference", **_LOWER),
    "is": Metric("IS", 2, "reference", **_HIGHER, low=1.0),
    "precision": Metric("precision", 1, "reference", **_HIGHER, **_PERCENT),
    "recall": Metric("recall", 1, "reference", **_HIGHER, **_PERCENT),
    # a figure over seeds, from a value of each seed
    "clip_score": Metric("CLIP score", 2, "values", **_HIGHER, high=100.0),
    "clip_loss": Metric("CLIP score lost", 2, "values", **_LOWER, low=-100.0, high=100.0),
    "perceptual": Metric("perceptual distance, median seed", 4, "values", **_LOWER),
    "solved_db": Metric("PSNR to the solution, median seed", 1, "values", **_PSNR),
    # cached samples against uncached samples of the same seeds
    "fid_drift": Metric("FID drift", 3, "features", **_LOWER),
    "mse": Metric("MSE", 4, "errors", **_LOWER, high=1.0),
    "psnr_db": Metric("PSNR", 1, "errors", **_PSNR),
    "psnr_median_db": Metric("PSNR, median seed", 1, "errors", **_PSNR),
    "tipped": Metric("tipped seeds", 1, "errors", **_LOWER, **_PERCENT),
    "psnr_untipped_db": Metric("PSNR without tipped seeds", 1, "errors", **_PSNR),
    # images of one prompt among each other
    "pairwise_perceptual": Metric("pairwise perceptual distance", 3, "one prompt", **_HIGHER),
    "pairwise_mse": Metric("pairwise MSE", 4, "one prompt", **_HIGHER, high=2.0),
    "clip_mean": Metric("CLIP score, mean", 2, "one prompt", **_HIGHER, high=100.0),
    "clip_variance": Metric("CLIP score, variance", 3, "one prompt", is_higher_better=None),
}

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"  # torch-fidelity gives the file this name
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
ALEXNET_FILE = "alexnet-owt-7be5be79.pth"  # torchvision gives the file this name
ALEXNET_URL = f"https://download.pytorch.org/models/{ALEXNET_FILE}"


def in_torch_cache(file: str) -> Path:
    """The path at which torch.hub keeps a file of weights, whether or not the file is there."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "torch"
    return Path(os.environ.get("TORCH_HOME") or cache).expanduser() / "hub" / "checkpoints" / file
