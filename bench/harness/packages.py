"""U-Nets of other packages, by name: of their published size, and small; `tox -e families` installs the packages."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

Call = tuple[Any, ...]


@dataclass(frozen=True)
class Package:
    """A class of U-Nets.

    Attributes:
        package: the name of the distribution.
        steps: the number of steps that its users sample with by default.
        published: builds the U-Net of a published size, with the arguments of a call.
        small: builds a small one.
    """

    package: str
    steps: int
    published: Callable[[], tuple[nn.Module, Call]]
    small: Callable[[], tuple[nn.Module, Call]]

    @property
    def version(self) -> str | None:
        """The installed version; None where the package is not installed."""
        try:
            return version(self.package)
        except PackageNotFoundError:
            return None


def _time(value: float = 500.0, batch: int = 2) -> Tensor:
    return torch.full((batch,), value)


def _skip_imports(*packages: str) -> None:
    """Have submodules of packages found without running what the packages import themselves."""
    if packages[0] in sys.modules:
        return
    root = find_spec(packages[0]).submodule_search_locations[0]
    for package in packages:
        made = ModuleType(package)
        made.__path__ = ["/".join([root, *package.split(".")[1:]])]
        sys.modules[package] = made


def _lucidrains(dim: int, mults: tuple[int, ...], size: int) -> tuple[nn.Module, Call]:
    module = import_module("denoising_diffusion_pytorch")
    return module.Unet(dim=dim, dim_mults=mults, flash_attn=False), (torch.randn(2, 3, size, size), _time())


def _lucidrains_1d(dim: int, mults: tuple[int, ...], length: int) -> tuple[nn.Module, Call]:
    module = import_module("denoising_diffusion_pytorch")
    return module.Unet1D(dim=dim, dim_mults=mults, channels=32), (torch.randn(2, 32, length), _time())


def _monai(dims: int, channels: tuple[int, ...], heads: int, groups: int, size: int) -> tuple[nn.Module, Call]:
    module = import_module("monai.networks.nets")
    unet = module.DiffusionModelUNet(
        spatial_dims=dims, in_channels=1, out_channels=1, channels=channels, attention_levels=(False, False, True),
        num_res_blocks=1, num_head_channels=heads, norm_num_groups=groups,
    )  # fmt: skip
    return unet, (torch.randn(2, 1, *[size] * dims), _time())


def _lerobot(widths: tuple[int, ...]) -> tuple[nn.Module, Call]:
    _skip_imports("lerobot", "lerobot.policies", "lerobot.policies.diffusion")  # other policies need more packages
    configuration = import_module("lerobot.policies.diffusion.configuration_diffusion")
    modeling = import_module("lerobot.policies.diffusion.modeling_diffusion")
    types = import_module("lerobot.configs.types")
    action = types.PolicyFeature(types.FeatureType.ACTION, (2,))
    config = configuration.DiffusionConfig(down_dims=widths, output_features={"action": action}, device="cpu")
    unet = modeling.DiffusionConditionalUnet1d(config, global_cond_dim=6)
    return unet, (torch.randn(2, 16, 2), _time(50.0).long(), torch.randn(2, 6))


def _azula(channels: tuple[int, ...], blocks: tuple[int, ...], modulation: int, size: int) -> tuple[nn.Module, Call]:
    module = import_module("azula.nn.unet")
    unet = module.UNet(in_channels=3, out_channels=3, hid_channels=channels, hid_blocks=blocks, mod_features=modulation)
    return unet, (torch.randn(2, 3, size, size), torch.randn(2, modulation))


def _k_diffusion(channels: tuple[int, ...], depths: tuple[int, ...], size: int) -> tuple[nn.Module, Call]:
    _skip_imports("k_diffusion", "k_diffusion.models")  # its metrics need an older setuptools
    module = import_module("k_diffusion.models.image_v1")
    attends = [False] * (len(channels) - 1) + [True]
    unet = module.ImageDenoiserModelV1(3, 4 * channels[0], list(depths), list(channels), attends)
    return unet, (torch.randn(2, 3, size, size), _time(3.0))


PACKAGES: dict[str, Package] = {
    "lucidrains, images": Package(
        "denoising-diffusion-pytorch",
        1000,
        lambda: _lucidrains(64, (1, 2, 4, 8), 64),
        lambda: _lucidrains(8, (1, 2), 16),
    ),
    "lucidrains, sequences": Package(
        "denoising-diffusion-pytorch",
        1000,
        lambda: _lucidrains_1d(64, (1, 2, 4, 8), 128),
        lambda: _lucidrains_1d(8, (1, 2), 32),
    ),
    "MONAI, 2D": Package(
        "monai", 1000, lambda: _monai(2, (128, 256, 256), 256, 32, 64), lambda: _monai(2, (8, 16, 16), 8, 8, 16)
    ),
    "MONAI, 3D": Package(
        "monai", 1000, lambda: _monai(3, (256, 256, 512), 512, 32, 32), lambda: _monai(3, (8, 16, 16), 8, 8, 8)
    ),
    "lerobot's policy": Package("lerobot", 100, lambda: _lerobot((512, 1024, 2048)), lambda: _lerobot((16, 32, 64))),
    "azula": Package(
        "azula", 64, lambda: _azula((64, 128, 256), (3, 3, 3), 256, 64), lambda: _azula((8, 16, 16), (1, 1, 1), 8, 16)
    ),
    "k-diffusion": Package(
        "k-diffusion",
        50,
        lambda: _k_diffusion((128, 256, 512), (2, 2, 4), 64),
        lambda: _k_diffusion((8, 16), (1, 1), 16),
    ),
}


def require(name: str) -> Package:
    """Return a package; the test is skipped where it is not installed."""
    if PACKAGES[name].version is None:
        pytest.skip("tox -e families installs it")
    return PACKAGES[name]


def seeded(build: Callable[[], tuple[nn.Module, Call]]) -> tuple[nn.Module, Call]:
    """Return a U-Net with the same random weights at each call; those that begin at zero are random, too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet, call = build()
        for parameter in unet.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.05)
    return unet.eval().requires_grad_(requires_grad=False), call
