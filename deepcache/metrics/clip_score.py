"""The CLIP score: how well images show what their prompts say, by mini-clip or by any model of open_clip."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepcache.errors import DeepCacheError, needs
from deepcache.metrics.archives import readable
from deepcache.metrics.images import Images, as_bytes
from deepcache.models.embedded import WEIGHTS

MINI = "mini-clip"
PAPER = ("ViT-g-14", "laion2b_s34b_b88k")  # the paper's architecture and the tag of its weights, in open_clip's names
_CONFIG, _WEIGHTS, _PICKLED = "open_clip_config.json", "open_clip_model.safetensors", "open_clip_pytorch_model.bin"


@dataclass(frozen=True, eq=False)
class Clip:
    """An image encoder and a text encoder into one space of D dimensions."""

    name: str  # kept in records, since a score means nothing without its model
    model: Any  # open_clip's
    preprocess: Callable[[Any], Tensor]  # resizes and normalises a PIL image as the weights ask for
    tokenizer: Callable[[list[str]], Tensor]  # turns texts into tokens (B, context length)

    def image_features(self, images: Tensor) -> Tensor:
        """Encode images (B, 3, H, W) in 0..1, rounded to 8 bits, as unit vectors (B, D), float32 on the CPU."""
        from torchvision.transforms.functional import to_pil_image

        pixels = torch.stack([self.preprocess(to_pil_image(image)) for image in as_bytes(images).cpu()])
        return self._unit(self.model.encode_image, pixels)

    def text_features(self, prompts: Sequence[str]) -> Tensor:
        """Encode prompts as unit vectors (B, D), float32 on the CPU; a prompt longer than the context is cut."""
        return self._unit(self.model.encode_text, self.tokenizer(list(prompts)))

    @torch.no_grad()
    def _unit(self, encode: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        device = next(iter(self.model.parameters())).device
        return torch.nn.functional.normalize(encode(inputs.to(device)).float(), dim=-1).cpu()


def clip_scores(clip: Clip, images: Images, prompts: Sequence[str], *, batch_size: int = 64) -> NDArray[np.float64]:
    """The CLIP score (B,) of each image with its prompt, 0..100: 100 * max(cos(image, text), 0).

    Raises:
        DeepCacheError: there are not as many prompts as images, or the images are of another shape or range.

    References:
        CLIPScore: A Reference-free Evaluation Metric for Image Captioning (Hessel et al., 2021),
        https://arxiv.org/abs/2104.08718; DeepCache has the factor 100 in place of their 2.5
    """
    if isinstance(prompts, str) or len(prompts) != len(images):
        got = "one string" if isinstance(prompts, str) else f"{len(prompts)} prompts for {len(images)} images"
        raise DeepCacheError(f"expected a list with a prompt for each image, got {got}")
    found = []
    for number, part in enumerate(images.split(batch_size)):
        image = clip.image_features(part)
        text = clip.text_features(prompts[number * batch_size :][: len(part)])
        found.append((image.double() * text.double()).sum(dim=1).clamp(min=0))
    return np.asarray(100 * torch.cat(found))


def load_clip(
    name: str | Path = MINI,
    *,
    pretrained: str | None = None,
    checkpoint: Path | None = None,
    device: str | torch.device = "cpu",
) -> Clip:
    """Load a model for CLIP scores, in float32; nothing is downloaded.

    Args:
        name: "mini-clip", a folder in open_clip's format, or one of open_clip's architectures.
        pretrained: open_clip's tag of an architecture's weights, which decides how images are normalised; if not given,
            the paper's tag for the paper's architecture.
        checkpoint: the file of an architecture's weights, if they are not in the hub's cache.
        device: where the model runs.

    Raises:
        DeepCacheError: open_clip, the architecture, the tag or the weights are not there, or the weights do not fit.
    """
    with needs("a CLIP score", "metrics"):
        import open_clip
    if name == MINI or os.path.isdir(name):
        found = _from_folder(open_clip, WEIGHTS / MINI if name == MINI else Path(name))
    else:
        found = _from_architecture(open_clip, str(name), pretrained, checkpoint)
    found.model.eval().requires_grad_(requires_grad=False).to(device)
    return found


def _from_folder(open_clip: Any, folder: Path) -> Clip:
    for file in (_CONFIG, _WEIGHTS):
        if not (folder / file).is_file():
            raise DeepCacheError(
                f"expected {folder.name} in {folder}, where {file} is missing; "
                "reinstall the package, or name a folder in open_clip's format"
            )
    source = f"local-dir:{folder}"
    with readable(folder, "weights and a tokenizer", "do not fit"):
        model, preprocess = open_clip.create_model_from_pretrained(source)
        return Clip(folder.name, model, preprocess, open_clip.get_tokenizer(source, local_files_only=True))


def _from_architecture(open_clip: Any, name: str, pretrained: str | None, checkpoint: Path | None) -> Clip:
    config = open_clip.get_model_config(name)
    if config is None:
        raise DeepCacheError(f"expected {MINI}, a folder or one of open_clip.list_models(); got {name!r}")
    if "hf_tokenizer_name" in config["text_cfg"]:
        raise DeepCacheError(
            f"expected an architecture with open_clip's own tokenizer; {name}'s would be downloaded, "
            "so name a folder in open_clip's format that holds the tokenizer"
        )
    if pretrained is None and name == PAPER[0]:
        pretrained = PAPER[1]
    tag = open_clip.get_pretrained_cfg(name, pretrained) if pretrained else {}
    if pretrained and not tag:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise DeepCacheError(f"expected a tag of {name}'s weights out of {known}; got {pretrained!r}")
    path = checkpoint or _cached(tag)
    if path is None or not path.is_file():
        place = f"in {path}" if path else "in the cache of the hub"
        origin = tag.get("hf_hub", "").rstrip("/") or tag.get("url") or "a tag of open_clip (pretrained=...)"
        raise DeepCacheError(
            f"expected the weights of {name} {place}, where they are not; they come from {origin}: "
            f"download {_WEIGHTS} or {_PICKLED} from there and give its path as checkpoint"
        )
    settings = {f"image_{key}": tag[key] for key in ("mean", "std", "interpolation", "resize_mode") if tag.get(key)}
    with readable(path, f"weights of {name}", "do not fit"):
        model, preprocess = open_clip.create_model_from_pretrained(
            name, pretrained=str(path), force_quick_gelu=bool(tag.get("quick_gelu")), **settings
        )
    return Clip(f"{name}/{pretrained or path.name}", model, preprocess, open_clip.get_tokenizer(name))


def _cached(tag: dict[str, Any]) -> Path | None:
    """The file in which the hub or open_clip keeps the weights of a tag, or None."""
    from huggingface_hub import try_to_load_from_cache

    repository, _, file = tag.get("hf_hub", "").rpartition("/")
    files = [str(Path(file).with_suffix(".safetensors")), file] if file else [_WEIGHTS, _PICKLED]
    places: list[Any] = [try_to_load_from_cache(repository, file) for file in files] if repository else []
    if tag.get("url"):
        places.append(Path("~/.cache/clip").expanduser() / Path(tag["url"]).name)
    return next((Path(place) for place in places if isinstance(place, str | Path) and Path(place).is_file()), None)
