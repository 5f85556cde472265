"""This module holds the columns and the published numbers that several experiments share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from deepcache.metrics.registry import METRICS
from deepcache.results.layout import PROTOCOL, Column, Published, Scalar, published_row


def column(metric: str, published: str = "", **more: Any) -> Column:
    """Return the column of a metric, with the title and the digits of its entry in `deepcache.metrics.registry`."""
    known = METRICS[metric]
    return Column(metric, known.title, known.digits, published, **more)


MACS = Column("macs", "MACs (G)", 4, "macs_g", scale=1e9, same=("model", "uncached_steps"))
TOTAL = Column("total_macs", "MACs of a sample (G)", 3, scale=1e9, same=("model",))
THROUGHPUT = Column("throughput", "images/s", 2, "throughput", same=None)
SPEEDUP = Column("speedup", "speedup", 2, "speedup", same=())
FID = column("fid", "fid")
SFID = column("sfid", "sfid")
IS = column("is", "is")
PRECISION = column("precision", "precision")
RECALL = column("recall", "recall")
CLIP = column("clip_score", "clip_score", same=(*PROTOCOL, "clip"))
PSNR = column("psnr_db")
MEDIAN = column("psnr_median_db")
TIPPED = column("tipped")
DRIFT = column("fid_drift")
NUM_FULL = Column("num_full", "full steps", 0)
FEATURE = Column("feature_bytes", "feature (KiB)", 1, scale=1024)
LATENCY = Column("latency_s", "latency (s)", 2)
SPEED = (MACS, THROUGHPUT, SPEEDUP)
QUALITY = (FID, SFID, IS, PRECISION, RECALL)
PUBLISHED = ("macs_g", "throughput", "speedup", "fid", "sfid", "is", "precision", "recall", "clip_score")
NEAREST = "PSNR to the uncached images, median seed (dB)"  # the title of an axis

# How the paper measured, by the names that records use for their settings.
_FIDELITY: dict[str, Scalar] = {"extractor": "Inception", "num_samples": 50_000}
LDM: dict[str, Scalar] = {**_FIDELITY, "model": "ldm-4-g", "uncached_steps": 250, "guidance_scale": 1.5}
DDPM: dict[str, Scalar] = {**_FIDELITY, "model": "ddpm-cifar10", "uncached_steps": 100}

# Data sets, as published.json calls them.
COCO, PARTI = "MS-COCO 2017 val (5k captions)", "PartiPrompts (1.63k prompts)"
CIFAR, BEDROOM, CHURCH = "CIFAR-10 32x32", "LSUN-Bedroom 256x256", "LSUN-Churches 256x256"


def of_the_paper(
    label: str, settings: Mapping[str, Scalar], rows: Iterable[tuple[Mapping[str, Scalar], Mapping[str, Any]]]
) -> tuple[Published, ...]:
    """Return published rows that were measured alike.

    Args:
        label: what was measured, and how.
        settings: how it was measured, by the names that records use for their settings.
        rows: for each row the key of the records above it, and what singles it out in published.json
            (`deepcache.results.layout.published_row`).

    Raises:
        LookupError: the paper has no such row.
    """
    found = ((key, published_row(**match)) for key, match in rows)
    return tuple(
        Published(
            dict(key),
            {name: value for name, value in entry.items() if name in PUBLISHED},
            label,
            dict(settings),
            entry.get("note", ""),
        )
        for key, entry in found
    )
