"""Models without their weights: the shapes of a U-Net and of a whole pipeline, or a pipeline of noise."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from diffusers.loaders.single_file_utils import fetch_diffusers_config
from torch import Tensor, nn

from deepcache.costs.macs import PAPER, PAPER_LDM, Convention, Cost, cost
from deepcache.errors import DeepCacheError, UnsupportedUNetError, guessed, shown
from deepcache.models.checkpoint import bounded, on_meta, read, readable, weights
from deepcache.models.class_conditional import ClassConditionalPipeline
from deepcache.models.embedded import WEIGHTS, folder_of
from deepcache.models.ldm import CLASSES, ldm_pipeline
from deepcache.models.ldm_config import Component
from deepcache.models.local_files import INDEX, SUFFIXES, home, path_of, snapshot
from deepcache.models.registry import EMBEDDED, MODELS, NETWORKS, PUBLISHED, Model, published
from deepcache.plan import require_whole
from deepcache.unets.calls import CLIP_TOKENS
from deepcache.unets.registry import classes, family_of

_PERIOD = 1_048_573  # length of the noise; a prime, so that rows of a weight are not alike
_STRIDE = 7919  # distance in the noise between the start of one weight and of the next
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
    found, _ = _described(name)
    if context_tokens is None:
        return found
    if not found.context_tokens:
        raise DeepCacheError(f"{name} takes no context; leave out --context-tokens")
    return replace(found, context_tokens=context_tokens)


def skeleton(name: str) -> tuple[SimpleNamespace, int | None]:
    """The networks of a pipeline without weights, as attributes (`unet`, `vae`, ...), and the length of its context.

    `name` and errors are as for `architecture`; the configuration of a single U-Net gives the U-Net alone.
    """
    found, others = _described(name)
    with guessed("correct the configuration"):
        unet = found.meta()
    networks = {part: on_meta(*network) for part, network in others}
    return SimpleNamespace(unet=unet, **networks), found.context_tokens or None


def _described(name: str) -> tuple[Architecture, Iterable[tuple[str, Component]]]:
    """The architecture of a model's U-Net, and the other networks; their configurations are read when asked for."""
    if known := published(name):
        return _published(known), ((part, network) for part, network in known.networks.items() if part != "unet")
    own = MODELS[name] if name in EMBEDDED else None
    folder = folder_of(name) if own else path_of(name)
    if folder.is_file() and folder.suffix.lower() in SUFFIXES:
        state = weights(folder)
        described = configuration(folder, state)
        if described is None:
            ldm_pipeline(state, str(folder))  # refuses the weights of other networks
        return _described(str(described or "ldm-4-g"))
    path = next(filter(Path.is_file, (folder, folder / "unet" / "config.json", folder / "config.json")), None)
    if path is None:
        raise DeepCacheError(f"expected the config.json of a U-Net in {folder}, got no such file; pass another folder")
    config, supported = read(path), classes()
    kind = config.get("_class_name")
    if not isinstance(kind, str) or kind not in supported:
        raise UnsupportedUNetError(f"expected a configuration of {', '.join(supported)} in {path}, got {shown(kind)}")
    base = folder_of(own.base) if own and own.base else folder
    index = read(base / INDEX) if (base / INDEX).is_file() else {}
    has_text = not index or not index.keys().isdisjoint(("text_encoder", "tokenizer"))
    context_tokens = own.context_tokens if own else CLIP_TOKENS if has_text else 1
    own_tokens = {"UNet2DModel": 0, "UNetSpatioTemporalConditionModel": 1}  # no context, and that of an image
    settings = {key: value for key, value in config.items() if not key.startswith("_")}
    others = (
        (part, (entry[0], entry[1], read(base / part / "config.json")))
        for part in _COUNTED
        if isinstance(entry := index.get(part), list) and len(entry) == 2 and entry[0] in ("diffusers", "transformers")
    )
    return Architecture(supported[kind], settings, own_tokens.get(kind, context_tokens)), others


def configuration(path: Path, state: dict[str, Tensor]) -> Path | None:
    """The folder on this machine with the configurations and the tokenizer of a single file, whose weights are given.

    The weights of CompVis' latent diffusion need no folder, and there is None.
    """
    if f"{CLASSES}embedding.weight" in state:
        return None
    with readable(path):  # diffusers raises if no known model has weights of these shapes
        hub_id = fetch_diffusers_config(state)["pretrained_model_name_or_path"]
    known = next((model for model in MODELS.values() if hub_id in (model.source, *model.mirrors)), None)
    hub_ids, own = ((known.source, *known.mirrors), home() / known.name) if known else ((hub_id,), None)
    for folder in (*map(snapshot, hub_ids), own):
        if folder is not None and (folder / INDEX).is_file():
            return folder
    raise DeepCacheError(
        f"expected the configuration and tokenizer of {hub_id} for {path}, which are not here; fetch "
        f"`hf download {hub_ids[0]} --include '*.json' '*.txt'`{f', or put them into {own}' if own else ''}"
    )


def random_pipeline(
    name: str, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", seed: int = 0
) -> Any:
    """A published model's pipeline with weights that depend on the seed alone.

    Every weight is cut out of one block of noise and scaled by its fan-in; norms are the identity, biases are 0.
    `name` is that of a published model, or of networks that models share.
    """
    model = published(name)
    if model is None or model.scheduler is None:
        names = ", ".join(dict.fromkeys([*NETWORKS, *PUBLISHED]))
        raise DeepCacheError(f"expected a real model for random weights, out of {names}; got {name!r}")
    order = sorted(model.networks, key=lambda name: name == "unet")  # the U-Net is last; the order decides the noise
    networks = nn.ModuleDict({name: on_meta(*model.networks[name]) for name in order})
    networks.to(dtype).to_empty(device=device).requires_grad_(requires_grad=False)
    noise = torch.randn(_PERIOD, generator=torch.Generator().manual_seed(seed)).to(device, dtype).repeat(2)
    for number, (place, weight) in enumerate(networks.named_parameters()):
        if weight.dim() > 1:
            offset = (number * _STRIDE) % _PERIOD
            for chunk in weight.view(-1).split(_PERIOD):
                chunk.copy_(noise[offset : offset + len(chunk)])
            weight.mul_(weight[0].numel() ** -0.5)
        else:
            weight.fill_(0.0 if place.endswith("bias") else 1.0)
    for positions in networks.buffers():  # the positions of CLIP's tokens are the only buffers
        positions.copy_(torch.arange(positions.numel(), device=positions.device).view_as(positions))
    _, kind, config = model.scheduler
    parts = dict(networks, scheduler=getattr(diffusers, kind).from_config(config))
    if "text_encoder" not in parts:
        return (ClassConditionalPipeline if "class_embedder" in parts else diffusers.DDPMPipeline)(**parts)
    from transformers import CLIPTokenizer

    # mini-sd's tokens are among those of every CLIP; prompts of CLIP have 77
    parts["tokenizer"] = CLIPTokenizer.from_pretrained(WEIGHTS / "mini-sd" / "tokenizer", model_max_length=77)
    if "text_encoder_2" in parts:
        return diffusers.StableDiffusionXLPipeline(**parts, tokenizer_2=parts["tokenizer"])
    unchecked = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return diffusers.StableDiffusionPipeline(**parts, **unchecked)
