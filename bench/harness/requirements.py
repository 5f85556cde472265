"""At the paper's scale an experiment needs checkpoints, an extractor, real images and prompts beside the packages.

An experiment says what it needs in its constant `NEEDS`. Whatever is missing is named on one page before any model is
loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from bench.harness.scales import Scale, scale_of
from deepcache.errors import DeepCacheError
from deepcache.metrics.registry import (
    ALEXNET_FILE,
    ALEXNET_URL,
    INCEPTION_FILE,
    INCEPTION_URL,
    in_torch_cache,
)
from deepcache.models.local_files import HOME, destination, home, located
from deepcache.models.registry import MODELS, Model

_CLIP_HUB = "laion/CLIP-ViT-g-14-laion2B-s34B-b88K"
_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


@dataclass(frozen=True)
class Needs:
    """The models and files that an experiment needs.

    Attributes:
        parts: the parts of the paper that its models play (`bench.harness.scales.Scale`).
        real_images: whether samples are compared with real images.
        lpips: whether samples are compared by LPIPS.
    """

    parts: tuple[str, ...]
    real_images: bool = False
    lpips: bool = False

    def models(self, scale: Scale) -> list[str]:
        """Return the names of the models that the experiment loads."""
        return [model for part in self.parts for model in _models(scale, part)]


@dataclass(frozen=True)
class Asset:
    """A file that is looked for in some places; `place` is where the user is asked to put it."""

    name: str
    source: str
    place: Path
    others: tuple[Path, ...] = ()

    def found(self) -> Path | None:
        return next((path for path in (self.place, *self.others) if path.exists()), None)

    def located(self) -> Path:
        """Return where the file lies.

        Raises:
            DeepCacheError: the file is not there.
        """
        path = self.found()
        if path is None:
            raise DeepCacheError(f"expected {self.name} in {self.place}, where it is not; fetch {self.source}")
        return path

    def to_fetch(self) -> str:
        return f"  {self.name}\n      from {self.source}\n      to   {self.place}"


def inception() -> Asset:
    """Return the weights of torch-fidelity's Inception."""
    name = "Inception, for FID, sFID, IS, precision and recall"
    return Asset(name, INCEPTION_URL, home() / INCEPTION_FILE, (in_torch_cache(INCEPTION_FILE),))


def alexnet() -> Asset:
    """Return the weights of LPIPS' network."""
    return Asset("AlexNet, for LPIPS", ALEXNET_URL, home() / ALEXNET_FILE, (in_torch_cache(ALEXNET_FILE),))


def clip() -> Asset:
    """Return the weights of CLIP ViT-g/14."""
    cached = [try_to_load_from_cache(_CLIP_HUB, file) for file in _CLIP_FILES]
    others = tuple(Path(path) for path in cached if isinstance(path, str))
    source = f"{_CLIP_FILES[0]} of https://huggingface.co/{_CLIP_HUB}"
    return Asset("CLIP ViT-g/14, for CLIP scores", source, home() / "ViT-g-14.safetensors", others)


def captions(config: Any) -> Asset:
    """Return the file of the prompts: that of `--prompts`, or COCO's captions."""
    source = "annotations/captions_val2017.json of COCO 2017, or name a file with --prompts"
    own = config.getoption("prompts")
    return Asset("prompts, one a sample", source, own or home() / "captions_val2017.json")


def reference(model: str) -> Asset:
    """Return the real images of a model's data set, or their statistics."""
    source, place = MODELS[model].reference, home() / "references" / model
    statistics = place.with_name(f"{model}.npz")
    if source.startswith("https"):
        return Asset(f"real images of {model}", source, statistics, (place,))
    return Asset(f"real images of {model}", source, place, (statistics,))


def page(asked: Sequence[Needs], config: Any) -> str:
    """Name everything that these experiments need and that is not there; an empty text if nothing is missing."""
    lines = list(dict.fromkeys(_missing(asked, config)))
    if not lines:
        return ""
    head = "--scale paper needs what is not here. Fetch it, or take --weights random (speed and MACs alone):"
    return "\n".join([head, *lines, f"${HOME} names another folder than {home()}; nothing is downloaded by itself."])


def _missing(asked: Sequence[Needs], config: Any) -> Iterator[str]:
    models = [model for each in asked for model in each.models(scale_of(config))]
    for model in models:
        known = MODELS[model]
        try:
            located(known)
        except DeepCacheError:
            yield Asset(f"{model} ({known.licence})", _address(known), destination(known)).to_fetch()
    assets = [asset for each in asked if each.real_images for asset in _real_images(scale_of(config), each)]
    assets += [inception()] * bool(models) + [clip(), captions(config)] * any(map(_is_prompted, models))
    assets += [alexnet()] * any(each.lpips for each in asked)
    yield from (asset.to_fetch() for asset in assets if asset.found() is None)


def _real_images(scale: Scale, asked: Needs) -> list[Asset]:
    return [reference(model) for model in asked.models(scale) if not _is_prompted(model)]


def _models(scale: Scale, part: str) -> tuple[str, ...]:
    found: Any = getattr(scale, part)
    if isinstance(found, dict):
        return tuple(entry if isinstance(entry, str) else entry[0] for entry in found.values())
    return (found,) if isinstance(found, str) else tuple(found)


def _address(known: Model) -> str:
    return known.source if known.is_single_file else f"https://huggingface.co/{known.source}"


def _is_prompted(model: str) -> bool:
    return MODELS[model].protocol.is_prompted
