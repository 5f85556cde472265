"""How each model is sampled: the paper's protocol, and for the embedded models the same in small."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Protocol:
    """A model's own way: scheduler, steps of the uncached run, samples a row, the paper's branch, guidance.

    `batch_size` images are sampled together, `timed_batch_size` where time is measured; `is_prompted` is whether
    captions are drawn, and CLIP scores measured.
    """

    scheduler: str
    num_steps: int
    num_samples: int
    branch: int
    guidance_scale: float | None
    batch_size: int
    timed_batch_size: int
    is_prompted: bool = False


LATENT = Protocol("ddim", 50, 150, 0, 1.5, 50, 16)
PIXELS = Protocol("ddim", 100, 40, 2, None, 40, 8)
PROMPTED = Protocol("plms", 50, 40, 1, 3.0, 40, 8, is_prompted=True)
PROTOCOLS = {
    "mini-ldm": LATENT,
    "mini-ddpm": PIXELS,
    "mini-sd": PROMPTED,
    "mini-bk-base": PROMPTED,
    "mini-bk-small": PROMPTED,
    "mini-bk-tiny": PROMPTED,
}
