"""Images of the U-Net "ddpm" that several files compare with."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deepcache import cached
from tests.problems import loop, unet


@pytest.fixture(scope="session")
def uncached() -> Tensor:
    return loop(unet("ddpm"))


@pytest.fixture(scope="session")
def expected(uncached: Tensor) -> Tensor:
    """At interval 3."""
    model = unet("ddpm")
    with cached(model, interval=3):
        image = loop(model)
    assert not torch.equal(image, uncached)
    return image
