"""Which models play the paper's parts: the embedded ones, or the real checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Scale:
    """The models of a scale, by part.

    `pixels` maps what Table 2's rows are called to model and scheduler; `pruned` maps BK-SDM's sizes to models; `raced`
    are those whose speed is compared with the older package's, in batches of `race_batches`.
    """

    class_conditional: str
    pixels: dict[str, tuple[str, str]]
    prompted: str
    pruned: dict[str, str]
    raced: tuple[str, ...]
    race_batches: tuple[int, ...]

    @property
    def unconditional(self) -> str:
        """The model of pixels that the other experiments take: Table 2's first."""
        return next(iter(self.pixels.values()))[0]

    @property
    def unpruned(self) -> tuple[str, str, str]:
        """A model of each kind."""
        return self.class_conditional, self.unconditional, self.prompted

    @property
    def models(self) -> tuple[str, ...]:
        """All of them, each once."""
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
    """That of pytest's `--scale`."""
    return SCALES[config.getoption("scale")]


def device_of(config: Any) -> str:
    """That of pytest's `--device`; the embedded models' baselines are the CPU's."""
    asked: str | None = config.getoption("device")
    if asked is not None or config.getoption("scale") == "mini":
        return asked or "cpu"
    from deepcache.models.loading import usual_device  # slow: what is missing is said before

    return usual_device()
