"""A scale says which models play the paper's parts: the embedded models, or the real checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Scale:
    """The models of a scale, by part.

    Attributes:
        class_conditional: the model of Table 1.
        pixels: for each name of rows in Table 2 the model and the scheduler.
        prompted: the model of text to image.
        pruned: the model of each of BK-SDM's sizes.
        raced: the models whose speed is compared with the older package's.
        race_batches: the batch sizes of this comparison.
    """

    class_conditional: str
    pixels: dict[str, tuple[str, str]]
    prompted: str
    pruned: dict[str, str]
    raced: tuple[str, ...]
    race_batches: tuple[int, ...]

    @property
    def unconditional(self) -> str:
        """The first model of Table 2, which the other experiments take as the model of pixels."""
        return next(iter(self.pixels.values()))[0]

    @property
    def unpruned(self) -> tuple[str, str, str]:
        """One model of each kind: class-conditional, unconditional and prompted."""
        return self.class_conditional, self.unconditional, self.prompted

    @property
    def models(self) -> tuple[str, ...]:
        """All models of the scale, each once."""
        pixels = [model for model, _ in self.pixels.values()]
        return tuple(dict.fromkeys((self.class_conditional, *pixels, self.prompted, *self.pruned.values())))


SCALES = {
    "mini": Scale(
        class_conditional="mini-ldm",
        pixels={
            "quadratic timesteps": ("mini-ddpm", "ddim-quadratic"),
            "uniform timesteps": ("mini-ddpm", "ddim"),
        },
        prompted="mini-sd",
        pruned={size: f"mini-bk-{size}" for size in ("base", "small", "tiny")},
        raced=("mini-ldm", "mini-ddpm", "mini-sd"),
        race_batches=(16,),
    ),
    "paper": Scale(
        class_conditional="ldm-4-g",
        pixels={
            "CIFAR-10": ("ddpm-cifar10", "ddim-quadratic"),
            "LSUN-Bedroom": ("ddpm-bedroom", "ddim"),
            "LSUN-Church": ("ddpm-church", "ddim"),
        },
        prompted="sd-1.5",
        pruned={size: f"bk-sdm-{size}" for size in ("base", "small", "tiny")},
        raced=("sd-1.5", "sdxl", "ldm-4-g", "ddpm-bedroom"),
        race_batches=(1, 8),
    ),
}


def scale_of(config: Any) -> Scale:
    """Return the scale that pytest's `--scale` names."""
    return SCALES[config.getoption("scale")]


def device_of(config: Any) -> str:
    """Return the device that pytest's `--device` names.

    Embedded models run on the CPU unless told otherwise, since their baselines were measured there."""
    asked: str | None = config.getoption("device")
    if asked is not None or config.getoption("scale") == "mini":
        return asked or "cpu"
    from deepcache.models.loading import usual_device  # slow: what is missing is said before

    return usual_device()
