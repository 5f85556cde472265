"""CLIP scores, on small random models; the oracles are closed forms and open_clip itself."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from torch import Tensor, nn

from bench.training import mini_clip
from bench.training.tokens import tokenizer
from deepcache.errors import DeepCacheError
from deepcache.metrics.clip_score import PAPER, Clip, clip_scores, load_clip

PROMPTS = ["a red sneaker on a blue background", "a green bag on a white background", "an unheard-of thing " * 9]
SMALL = {  # an architecture of open_clip, in small
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}
TAG = {"hf_hub": "someone/small/", "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "resize_mode": "squash"}


def random_model(**config) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return open_clip.CLIP(**config).eval()


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    return random_model(**mini_clip.config())


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "small-clip"
    mini_clip.export(trained, tokenizer(), folder)
    return folder


@pytest.fixture(scope="module")
def clip(folder) -> Clip:
    return load_clip(folder)


@pytest.fixture
def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(256, (3, 3, 32, 32), generator=generator)
    return levels / 255


@pytest.fixture
def architecture(monkeypatch, tmp_path) -> str:
    """An architecture and a tag that open_clip knows, and an empty cache."""
    file = tmp_path / "small.json"
    file.write_text(json.dumps(SMALL))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", [])
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", {})
    open_clip.add_model_config(file)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "small", {"some": TAG})
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return "small"


class Plane:
    """An encoder of images and texts into a plane, at the angles (in degrees) that they are made with."""

    def __init__(self, *, image: list[float], text: list[float]) -> None:
        self.image, self.text = image, text

    def encode_image(self, images: Tensor) -> Tensor:
        return 7 * self._vectors(self.image)[: len(images)]

    def encode_text(self, _tokens: Tensor) -> Tensor:
        return 0.2 * self._vectors(self.text)

    def parameters(self) -> list[Tensor]:
        return [torch.zeros(1)]

    @staticmethod
    def _vectors(angles: list[float]) -> Tensor:
        radians = torch.deg2rad(torch.tensor(angles))
        return torch.stack([radians.cos(), radians.sin()], dim=1)


def plane() -> Clip:
    model = Plane(image=[0, 10, 0], text=[60, 10, 120])
    return Clip("plane", model, preprocess=lambda _: torch.zeros(3), tokenizer=lambda texts: torch.zeros(len(texts)))


def test_score_is_a_hundred_cosines_and_never_negative(images):
    np.testing.assert_allclose(clip_scores(plane(), images, PROMPTS), [50, 100, 0], rtol=1e-6)  # float32 vectors


def test_features_that_are_not_normalised_give_another_score(images, monkeypatch):
    monkeypatch.setattr(torch.nn.functional, "normalize", lambda features, dim: features)  # noqa: ARG005
    assert not np.allclose(clip_scores(plane(), images, PROMPTS), [50, 100, 0], rtol=0.1)


def test_features_are_unit_vectors(clip, images):
    for features in (clip.image_features(images), clip.text_features(PROMPTS)):
        assert features.shape == (3, 64)
        assert features.dtype == torch.float32
        torch.testing.assert_close(features.norm(dim=1), torch.ones(3))


def test_scores_are_open_clips_own(folder, clip, images):
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    pixels = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    pictures = torch.stack([preprocess(Image.fromarray(picture)) for picture in pixels])
    with torch.no_grad():
        image, text, _ = model.eval()(pictures, open_clip.get_tokenizer(f"local-dir:{folder}")(PROMPTS))
    expected = 100 * (image * text).sum(dim=1).clamp(min=0)
    assert (expected > 0).any()
    assert clip.name == "small-clip"
    np.testing.assert_allclose(clip_scores(clip, images, PROMPTS), expected, rtol=1e-5)  # float32 against float64


def test_images_are_normalised_to_minus_one_to_one(clip):
    black, white = (clip.preprocess(Image.new("RGB", (32, 32), colour)) for colour in ("black", "white"))
    assert (black == -1).all()
    assert (white == 1).all()


def test_export_leaves_the_model_as_it_is(trained, folder):
    assert {weight.dtype for weight in trained.parameters()} == {torch.float32}
    assert {file.name for file in folder.iterdir()} == {
        "open_clip_config.json",
        "open_clip_model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_images_are_rounded_to_what_files_hold(clip, images):
    expected = clip.image_features(images)
    for off in (0.4, -0.4):
        nearly = (images + off / 255).clamp(0, 1)
        torch.testing.assert_close(clip.image_features(nearly), expected, rtol=0, atol=0)
    assert not torch.equal(clip.image_features((images + 1 / 255).clamp(0, 1)), expected)


def test_batches_change_nothing_but_rounding(clip, images):
    whole = clip_scores(clip, images, PROMPTS)
    np.testing.assert_allclose(clip_scores(clip, images, PROMPTS, batch_size=2), whole, rtol=1e-5)
    swapped = clip_scores(clip, images.flip(0), PROMPTS[::-1], batch_size=1)
    np.testing.assert_allclose(swapped[::-1], whole, rtol=1e-5)


def test_weights_of_a_tag_are_taken_from_the_hubs_cache(architecture):
    snapshot = Path(constants.HF_HUB_CACHE, "models--someone--small")
    (snapshot / "refs").mkdir(parents=True)
    (snapshot / "refs/main").write_text("0" * 40)
    (snapshot / "snapshots" / ("0" * 40)).mkdir(parents=True)
    model = random_model(**SMALL)
    torch.save(model.state_dict(), snapshot / "snapshots" / ("0" * 40) / "open_clip_pytorch_model.bin")
    clip = load_clip(architecture, pretrained="some")
    assert clip.name == "small/some"
    assert clip.preprocess.transforms[-1].mean == TAG["mean"]  # type: ignore[attr-defined]
    with torch.no_grad():
        tokens = open_clip.get_tokenizer("small")(PROMPTS)
        pixels = torch.stack([clip.preprocess(Image.new("RGB", (40, 24), "red"))] * 3)
        image, text, _ = model(pixels, tokens)
    red = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).expand(3, 3, 24, 40)
    expected = 100 * (image * text).sum(dim=1).clamp(min=0)
    assert (expected > 0).any()
    np.testing.assert_allclose(clip_scores(clip, red, PROMPTS), expected, rtol=1e-4)  # float32


def test_a_checkpoint_can_be_named(architecture, tmp_path):
    model = random_model(**SMALL)
    torch.save(model.state_dict(), tmp_path / "own.pt")
    clip = load_clip(architecture, checkpoint=tmp_path / "own.pt")
    assert clip.name == "small/own.pt"
    assert torch.equal(clip.model.visual.conv1.weight, model.visual.conv1.weight)
    assert clip.preprocess.transforms[-1].mean == open_clip.OPENAI_DATASET_MEAN  # type: ignore[attr-defined]


def test_a_missing_checkpoint_is_one_clear_line_and_no_download(architecture, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", None)
    monkeypatch.setattr(open_clip.pretrained, "hf_hub_download", None)
    monkeypatch.setattr(open_clip.factory, "download_pretrained", None)
    with pytest.raises(DeepCacheError, match=r"^expected the weights of small .* from someone/small: .*checkpoint$"):
        load_clip(architecture, pretrained="some")
    with pytest.raises(DeepCacheError, match=r"^expected the weights of small in .*none\.pt, where they are not"):
        load_clip(architecture, pretrained="some", checkpoint=tmp_path / "none.pt")
    with pytest.raises(DeepCacheError, match="a tag of open_clip"):
        load_clip(architecture)


def test_the_papers_model_has_the_papers_weights_as_open_clip_names_them(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DeepCacheError, match=r"from laion/CLIP-ViT-g-14-laion2B-s34B-b88K: download"):
        load_clip(PAPER[0])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nothing", {}, "expected mini-clip, a folder or one of open_clip"),
        ("ViT-B-32", {"pretrained": "none"}, "expected a tag of ViT-B-32's weights out of openai"),
        ("xlm-roberta-base-ViT-B-32", {"pretrained": "laion5b_s13b_b90k"}, "would be downloaded"),
    ],
)
def test_an_unknown_model_is_refused(name, options, message):
    with pytest.raises(DeepCacheError, match=message):
        load_clip(name, **options)


def test_a_checkpoint_that_does_not_fit_is_refused(architecture, tmp_path):
    torch.save({"text": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(DeepCacheError, match=r"expected weights of small in .*other\.pt, which do not fit"):
        load_clip(architecture, checkpoint=tmp_path / "other.pt")


def test_a_checkpoint_that_would_run_code_is_refused(architecture, tmp_path):
    class Foreign:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "made"),)

    torch.save({"state_dict": Foreign()}, tmp_path / "foreign.pt")
    with pytest.raises(DeepCacheError, match="which do not fit"):
        load_clip(architecture, checkpoint=tmp_path / "foreign.pt")
    assert not (tmp_path / "made").exists()


def test_a_folder_without_weights_is_refused(folder, tmp_path):
    (tmp_path / "open_clip_config.json").write_bytes((folder / "open_clip_config.json").read_bytes())
    with pytest.raises(DeepCacheError, match=r"where open_clip_model\.safetensors is missing"):
        load_clip(tmp_path)


def test_images_and_prompts_must_match(clip, images):
    with pytest.raises(DeepCacheError, match="got 2 prompts for 3 images"):
        clip_scores(clip, images, PROMPTS[:2])
    with pytest.raises(DeepCacheError, match="got one string"):
        clip_scores(clip, images, "one")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.full((3, 3, 32, 32), -0.5), r"got values in -0\.5\.\.-0\.5; turn x in -1\.\.1"),
        (torch.full((3, 3, 32, 32), torch.nan), "got values in nan"),
        (torch.zeros(3, 1, 32, 32), r"got shape \(3, 1, 32, 32\)"),
        (torch.zeros(3, 3, 32, 32, dtype=torch.uint8), r"of torch\.uint8"),
    ],
)
def test_images_of_another_range_or_shape_are_refused(clip, wrong, message):
    with pytest.raises(DeepCacheError, match=message):
        clip_scores(clip, wrong, PROMPTS)
