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


_MINI_SD = Protocol("plms", 50, 40, 1, 3.0, 40, 8, is_prompted=True)
_LSUN = Protocol("ddim", 100, 50_000, 2, None, 25, 8)
_SD = Protocol("plms", 50, 5_000, 1, 7.5, 25, 8, is_prompted=True)  # first captions of COCO 2017 val
PROTOCOLS = {
    # scores are in the models' cards
    "mini-ldm": Protocol("ddim", 50, 150, 0, 1.5, 50, 16),
    "mini-ddpm": Protocol("ddim", 100, 40, 2, None, 40, 8),
    "mini-sd": _MINI_SD,
    "mini-bk-base": _MINI_SD,
    "mini-bk-small": _MINI_SD,
    "mini-bk-tiny": _MINI_SD,
    # the paper's, with the score it printed for the uncached run and for its headline plan
    "ldm-4-g": Protocol("ddim", 250, 50_000, 0, 1.5, 50, 8),  # FID 3.37; N = 3 3.44, N = 10 4.41
    "ddpm-cifar10": Protocol("ddim-quadratic", 100, 50_000, 2, None, 250, 64),  # FID 4.16; N = 3 4.70, N = 5 5.73
    "ddpm-bedroom": _LSUN,  # FID 6.70; N = 3 7.20, N = 5 9.49
    "ddpm-church": _LSUN,  # FID 10.87; N = 3 11.75, N = 5 13.68
    "sd-1.5": _SD,  # CLIP score 30.30 (PLMS 50), 29.99 (PLMS 25); N = 5 30.23
    "bk-sdm-base": _SD,  # CLIP score 29.47
    "bk-sdm-small": _SD,  # CLIP score 27.96
    "bk-sdm-tiny": _SD,  # CLIP score 27.41
    # beyond the paper, which has no score of them
    "sd-2.1": Protocol("plms", 50, 5_000, 1, 7.5, 25, 8, is_prompted=True),
    "sdxl": Protocol("euler", 50, 5_000, 1, 5.0, 10, 8, is_prompted=True),
}
