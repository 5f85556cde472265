"""A manifest for the tests of stores, and samples that can be told from each other without a model."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from deepcache.sampling.manifest import Manifest
from deepcache.sampling.shards import Pixels

MANIFEST = Manifest(
    model="mini-ddpm",
    weights="trained sha256:00",
    scheduler="ddim",
    scheduler_config={"beta_start": 0.0001, "beta_end": 0.02},
    num_steps=3,
    guidance_scale=None,
    conditions="none",
    plan=None,
    dtype="fp32",
    image_size=[2, 4],
    batch_size=4,
    shard_size=4,
    made_with={"device": "cpu"},
)


def manifest(**changes: Any) -> Manifest:
    return replace(MANIFEST, **changes)


def make(seeds: range) -> Pixels:
    """Return samples whose pixels tell their seed and their place."""
    places = np.arange(2 * 4 * 3).reshape(1, 2, 4, 3)
    return (np.array(seeds)[:, None, None, None] * 7 + places).astype(np.uint8)


def hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in a store, temporary files included."""
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
