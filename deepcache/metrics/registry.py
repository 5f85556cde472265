"""The metrics: how each is called and printed, which direction is better, and which function measures it.

A new metric is written in two files: its function in a module of this package, and its entry in `METRICS`. `deepcache
metrics` and the benches then measure and record it, since both measure every metric of the inputs that they have. A
bench prints it where its table has the column (`bench.harness.columns.column`); the gate compares it where
`deepcache.results.compare.FIDELITY` gives it a tolerance.

This module imports neither torch nor numpy, so that a table can take the title and the digits of a metric from it, and
so that a command can tell where the weights of the large extractors come from before anything is loaded.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

Inputs = Literal["reference", "features", "errors", "values", "one prompt"]


@dataclass(frozen=True)
class Metric:
    """A number that is measured on images, and how it is printed.

    Attributes:
        name: what readers call the metric, without its unit.
        digits: how many digits a table prints after the point.
        inputs: what the function takes.
            "reference": `Statistics` of the samples, and a `Reference` of real images.
            "features": the `Features` of cached and of uncached samples of the same seeds.
            "errors": the mean squared error (B,) of each cached image to the uncached image of the same seed.
            "values": a value (B,) of each seed, such as a CLIP score or a perceptual distance.
            "one prompt": `Varied` images, which several seeds made of one prompt.
        function: the function that measures the metric, as "module.function" within this package. The function returns
            None where its inputs lack what the metric needs.
        is_higher_better: whether a larger value is better; None where neither direction is.
        unit: "dB", "%", or empty.
        low, high: the ends of the metric's range.
    """

    name: str
    digits: int
    inputs: Inputs
    function: str
    is_higher_better: bool | None
    unit: str = ""
    low: float = 0.0
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
    "fid": Metric("FID", 2, "reference", "fidelity.fid", **_LOWER),
    "sfid": Metric("sFID", 2, "reference", "fidelity.sfid", **_LOWER),
    "is": Metric("IS", 2, "reference", "fidelity.inception_score", **_HIGHER, low=1.0),
    "precision": Metric("precision", 1, "reference", "fidelity.precision", **_HIGHER, **_PERCENT),
    "recall": Metric("recall", 1, "reference", "fidelity.recall", **_HIGHER, **_PERCENT),
    # a figure over seeds, from a value of each seed
    "clip_score": Metric("CLIP score", 2, "values", "fidelity.mean", **_HIGHER, high=100.0),
    "clip_loss": Metric("CLIP score lost", 2, "values", "fidelity.mean", **_LOWER, low=-100.0, high=100.0),
    "perceptual": Metric("perceptual distance, median seed", 4, "values", "fidelity.median", **_LOWER),
    "solved_db": Metric("PSNR to the solution, median seed", 1, "values", "fidelity.median", **_PSNR),
    # cached samples against uncached samples of the same seeds
    "fid_drift": Metric("FID drift", 3, "features", "fidelity.fid_drift", **_LOWER),
    "mse": Metric("MSE", 4, "errors", "fidelity.mean", **_LOWER, high=1.0),
    "psnr_db": Metric("PSNR", 1, "errors", "fidelity.psnr_of_mean_error", **_PSNR),
    "psnr_median_db": Metric("PSNR, median seed", 1, "errors", "fidelity.psnr_of_median_error", **_PSNR),
    "tipped": Metric("tipped seeds", 1, "errors", "fidelity.tipped_share", **_LOWER, **_PERCENT),
    "psnr_untipped_db": Metric("PSNR without tipped seeds", 1, "errors", "fidelity.psnr_of_untipped", **_PSNR),
    # images of one prompt among each other
    "pairwise_perceptual": Metric("pairwise perceptual distance", 3, "one prompt", "fidelity.pairwise_mean", **_HIGHER),
    "pairwise_mse": Metric("pairwise MSE", 4, "one prompt", "fidelity.pairwise_mse", **_HIGHER, high=2.0),
    "clip_mean": Metric("CLIP score, mean", 2, "one prompt", "fidelity.clip_mean", **_HIGHER, high=100.0),
    "clip_variance": Metric("CLIP score, variance", 3, "one prompt", "fidelity.clip_variance", is_higher_better=None),
}


def measured(inputs: Inputs, *given: object) -> dict[str, float]:
    """Measure all metrics of one kind.

    Args:
        inputs: the kind: what the metrics' functions take.
        given: these inputs.

    Returns:
        The value of each metric by its key in `METRICS`, without the metrics that could not be measured.
    """
    found: dict[str, float] = {}
    for key, metric in METRICS.items():
        if metric.inputs == inputs:
            module, function = metric.function.split(".")
            value = getattr(import_module(f"deepcache.metrics.{module}"), function)(*given)
            if value is not None:
                found[key] = value
    return found


INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"  # torch-fidelity gives the file this name
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
ALEXNET_FILE = "alexnet-owt-7be5be79.pth"  # torchvision gives the file this name
ALEXNET_URL = f"https://download.pytorch.org/models/{ALEXNET_FILE}"


def in_torch_cache(file: str) -> Path:
    """The path at which torch.hub keeps a file of weights, whether or not the file is there."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "torch"
    return Path(os.environ.get("TORCH_HOME") or cache).expanduser() / "hub" / "checkpoints" / file


def inception_in_cache() -> Path:
    """The path at which torch.hub keeps Inception's weights, whether or not the file is there."""
    return in_torch_cache(INCEPTION_FILE)
