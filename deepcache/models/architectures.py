"""Models without weights: the shapes of a U-Net and of a whole pipeline, by name or from configuration files."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch

from deepcache.costs.macs import PAPER, PAPER_LDM, Convention, Cost, cost
from deepcache.errors import DeepCacheError, UnsupportedUNetError, guessed, shown
from deepcache.models.checkpoint import bounded, on_meta, read
from deepcache.models.embedded import folder_of
from deepcache.models.ldm_config import Component
from deepcache.models.local_files import INDEX, SUFFIXES, is_hub_id, repository
from deepcache.models.registry import EMBEDDED, MODELS, NETWORKS, PUBLISHED, Model, published
from deepcache.plan import require_whole
from deepcache.unets.calls import CLIP_TOKENS
from deepcache.unets.registry import classes, family_of

_COUNTED = ("text_encoder", "text_encoder_2", "text_encoder_3", "vae", "vqvae", "movq")


@dataclass(frozen=True)
class Architecture:
    """A U-Net's configuration, the size of its inputs, and how its MACs are counted."""

    build: Any  # the U-Net's class
    config: dict[str, Any]
    context_tokens: int = 0  # length of the conditioning sequence; 0 for a U-Net that takes none
    convention: Convention = PAPER  # how the paper counted the MACs

    def meta(self) -> Any:
        """The U-Net on the meta device: all of its shapes, and no memory."""
        with torch.device("meta"), bounded():
            return self.build.from_config(self.config)

    @property
    def num_branches(self) -> int:
        """Number of skip connections, each of which is a branch."""
        unet = self.meta()
        return family_of(unet).nest(unet).num_branches

    def cost(self) -> Cost:
        """MACs of the steps on one sample; an `UnsupportedUNetError` if the U-Net's inputs cannot be guessed."""
        with guessed("call deepcache.costs.macs.cost(unet, ...) with the U-Net's own inputs"):
            unet = self.meta()
            args, kwargs = family_of(unet).example(unet, context_tokens=self.context_tokens or None)
            return cost(unet, *args, **kwargs)


def _published(model: Model) -> Architecture:
    _, kind, config = model.networks["unet"]
    convention = PAPER if model.counts_group_norms else PAPER_LDM
    return Architecture(getattr(diffusers, kind), config, model.context_tokens, convention)


ARCHITECTURES = {name: _published(model) for name, model in NETWORKS.items()}


def architecture(name: str, *, context_tokens: int | None = None) -> Architecture:
    """The architecture of a model's U-Net.

    Args:
        name: whatever `deepcache.models.load` takes, a name of `ARCHITECTURES`, or the `config.json` of a U-Net.
        context_tokens: length of the conditioning sequence; if None, that of the known model, else 77.

    Raises:
        DeepCacheError: there is no such model, or its configuration cannot be read.
        UnsupportedUNetError: the configuration is of a class that is not supported.
    """
    if context_tokens is not None:
        require_whole("context_tokens", context_tokens, at_least=1)
    found = _find(_described(name))
    if context_tokens is None:
        return found
    if not found.context_tokens:
        raise DeepCacheError(f"{name} takes no context; leave out --context-tokens")
    return replace(found, context_tokens=context_tokens)


def skeleton(name: str) -> tuple[SimpleNamespace, int | None]:
    """The networks of a pipeline without weights, and the length of its context.

    Args:
        name: as for `architecture`; the configuration of a single U-Net gives the U-Net alone.

    Returns:
        The networks as attributes (`unet`, `vae`, ...) on the meta device; the number of context tokens, or None.

    Raises:
        DeepCacheError: there is no such model, its configuration cannot be read, or a library is not installed.
    """
    described = _described(name)
    found = _find(described)
    with guessed("correct the configuration"):
        unet = found.meta()
    networks = {component: on_meta(*network) for component, network in _beside_unet(described).items()}
    return SimpleNamespace(unet=unet, **networks), found.context_tokens or None


def _described(name: str) -> str:
    """What tells the networks of a model: a known name, a folder, or the path of a configuration."""
    path = Path(name)
    suffix = path.suffix.lower()
    if os.path.isfile(path) and suffix in SUFFIXES:
        from deepcache.models.loading import configuration  # slow, and hardly ever needed

        return configuration(path)
    is_file = suffix in (".json", *SUFFIXES)  # or the name of a file that is not there
    return str(repository(name)) if is_hub_id(name) and not os.path.exists(path) and not is_file else name


def _index(folder: Path) -> dict[str, Any]:
    return read(folder / INDEX) if os.path.isfile(folder / INDEX) else {}


def _find(name: str) -> Architecture:
    if known := published(name):
        return _published(known)
    folder = folder_of(name) if name in EMBEDDED else Path(name)
    places = (folder, folder / "unet" / "config.json", folder / "config.json")
    path = next(filter(os.path.isfile, places), None)  # unlike Path.is_file, this also takes a name that is too long
    if path is None:
        names = ", ".join(dict.fromkeys([*ARCHITECTURES, *PUBLISHED, *EMBEDDED]))
        raise DeepCacheError(
            f"expected a model out of {names}, a diffusers folder or a config.json; got {name!r}, which is neither"
        )
    index, config, supported = _index(folder), read(path), classes()
    kind = config.get("_class_name")
    if not isinstance(kind, str) or kind not in supported:
        raise UnsupportedUNetError(f"expected a configuration of {', '.join(supported)} in {path}, got {shown(kind)}")
    has_text = not index or not index.keys().isdisjoint(("text_encoder", "tokenizer"))
    context_tokens = MODELS[name].context_tokens if name in EMBEDDED else CLIP_TOKENS if has_text else 1
    own = {"UNet2DModel": 0, "UNetSpatioTemporalConditionModel": 1}  # the former takes no context, the latter an image
    settings = {key: value for key, value in config.items() if not key.startswith("_")}
    return Architecture(supported[kind], settings, own.get(kind, context_tokens))


def _beside_unet(name: str) -> dict[str, Component]:
    """The networks of a pipeline other than its U-Net."""
    if known := published(name):
        return {component: network for component, network in known.networks.items() if component != "unet"}
    folder = folder_of(MODELS[name].base or name) if name in EMBEDDED else Path(name)
    index = _index(folder)
    entries = {part: index[part] for part in _COUNTED if isinstance(index.get(part), list)}  # [library, class]
    return {
        part: (entry[0], entry[1], read(folder / part / "config.json"))
        for part, entry in entries.items()
        if len(entry) == 2 and entry[0] in ("diffusers", "transformers") and isinstance(entry[1], str)
    }
