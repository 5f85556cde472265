"""The cards of the embedded models, on untrained networks: laws of the scores, and the form of the text."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import one_hot

from bench.training import fashion, mini_ddpm, mini_sd, prompted
from bench.training.__main__ import CARDS, main
from bench.training.cards import Card, markdown, tiles, trained
from bench.training.mini_clip import right_of
from bench.training.mini_sd import best_guidance
from bench.training.prompted import asked_for
from deepcache.errors import DeepCacheError
from deepcache.models import captions
from deepcache.models.registry import EMBEDDED
from tests.training import untrained

RUNS = {
    "mini-ddpm": ("mini-ddpm/denoiser",),
    "mini-clip": ("mini-clip/contrastive",),
    "mini-sd": ("mini-sd/autoencoder", "mini-sd/denoiser"),
    "mini-bk-base": ("mini-bk/base",),
    "mini-bk-small": ("mini-bk/small",),
    "mini-bk-tiny": ("mini-bk/tiny",),
}
PROMISED = {  # the names of the scores, which other files read
    "mini-ddpm": {"fid", "sfid", "is", "precision", "recall"},
    "mini-clip": {"right_of_50", "right_of_490", "clip_score_of_real_images"},
    "mini-sd": {"guidance", "garment_as_asked", "colour_as_asked", "background_as_asked", "clip_score"}
    | {"autoencoder_psnr_db", "all_as_asked", "by_guidance"},
    **dict.fromkeys(
        ("mini-bk-tiny",),
        {"guidance", "garment_as_asked", "colour_as_asked", "background_as_asked", "clip_score"}
        | {"all_as_asked", "parameters", "macs", "macs_share_of_mini_sd"},
    ),
}


@pytest.fixture(scope="module")
def held_out():
    return fashion.paint(untrained.garments(), seed=0)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    untrained.weights(folder)
    return folder


@pytest.fixture
def weights(exported, monkeypatch):
    untrained.use(monkeypatch, exported)
    for module in (prompted, mini_ddpm):
        monkeypatch.setattr(module, "NUM_SAMPLES", 4)
        monkeypatch.setattr(module, "NUM_STEPS", 2)
    monkeypatch.setattr(mini_sd, "GUIDANCES", (3.0, 5.0))
    return exported


@pytest.fixture
def runs(tmp_path):
    for place in sum(RUNS.values(), ()):
        (tmp_path / place).mkdir(parents=True)
        lines = [{"step": step, "loss": 0.25, "seconds": 0.6 * step} for step in (100, 200)]
        (tmp_path / place / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


def test_every_embedded_model_has_a_card():
    assert set(CARDS) == {*EMBEDDED, "mini-features", "mini-clip"}


@pytest.mark.parametrize("name", PROMISED)
def test_a_card_is_a_text_with_scores_and_a_picture(name, weights, runs, held_out):
    if name.startswith("mini-bk"):
        (weights / "mini-sd" / "scores.json").write_text('{"guidance": 5.0}')
    card = CARDS[name](held_out, runs)
    card.write(weights / name)
    text = (weights / name / "README.md").read_text()
    scores = json.loads((weights / name / "scores.json").read_text())
    assert set(scores) == PROMISED[name]
    assert scores.get("guidance") in ((5.0,) if name.startswith("mini-bk") else (None, 3.0, 5.0))
    assert all(math.isfinite(value) for value in scores.values() if isinstance(value, (int, float)))
    assert text.startswith(f"# {name}\n\n")
    assert "200 steps of" in text
    assert "2 minutes on a CPU" in text
    assert "loss 0.2500" in text
    assert "(samples.png)" in text
    with Image.open(weights / name / "samples.png") as picture:
        assert min(picture.size) > 32


def test_the_pruned_are_not_measured_before_the_best_guidance_of_mini_sd_is_known(weights, runs, held_out):
    (weights / "mini-sd" / "scores.json").unlink(missing_ok=True)
    with pytest.raises(DeepCacheError, match="write the card of mini-sd first"):
        CARDS["mini-bk-tiny"](held_out, runs)


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.usefixtures("weights")
def test_no_card_without_the_log_of_the_training(name, tmp_path, held_out):
    with pytest.raises(DeepCacheError, match=r"expected the log of a finished training.*train the model first"):
        CARDS[name](held_out, tmp_path / "nowhere")


def test_no_card_without_weights(tmp_path):
    with pytest.raises(DeepCacheError, match="expected the weights of mini-x"):
        Card("mini-x", "about", (), "measured", {}).write(tmp_path / "mini-x")


def test_a_training_says_how_many_images_it_saw_and_on_what(tmp_path):
    (tmp_path / "log.jsonl").write_text(json.dumps({"step": 1500, "loss": 0.5, "seconds": 120, "threads": 2}))
    assert trained("U-Net", tmp_path, 64).startswith(
        "U-Net: 1,500 steps of 64 images (96,000 seen), 2 minutes on 2 threads of a CPU"
    )


def test_scores_are_shown_as_a_table_and_those_of_parts_are_not():
    card = Card("mini-x", "about", ("fact",), "measured", {"fid": 0.5, "macs": 1200, "parts": {"a": 1}})
    assert markdown(("score", "value"), [("fid", 0.5), ("macs", 1200)]) in card.text()
    assert "parts" not in card.text()


class Seeing:
    """An extractor that finds the same subjects in all images."""

    def __init__(self, subjects):
        garment, colour, background = torch.tensor(subjects).T
        self.seen = SimpleNamespace(
            garment=one_hot(garment, 10), colour=one_hot(colour, 7), background=one_hot(background, 8)
        )

    def __call__(self, _images):
        return self.seen


def test_what_was_asked_for_is_counted_by_garment_colour_background_and_all():
    asked = [captions.Subject(1, 2, 3), captions.Subject(4, 5, 6), captions.Subject(7, 1, 2), captions.Subject(0, 1, 7)]
    seen = [(1, 2, 3), (9, 5, 6), (7, 1, 0), (0, 1, 7)]
    shares = asked_for(Seeing(seen), torch.zeros(4, 3, 32, 32), asked)
    assert shares == {"garment_as_asked": 0.75, "colour_as_asked": 1, "background_as_asked": 0.75, "all_as_asked": 0.5}


def test_the_right_caption_of_some_is_found_by_a_model_that_knows_and_not_by_one_that_does_not():
    own = torch.arange(300) % 490
    knows = torch.eye(490)[own]
    assert right_of(knows, own, 50) == right_of(knows, own, 490) == 1
    assert right_of(torch.ones(300, 490), own, 50) == 0  # a tie is no answer
    guesses = torch.rand(3000, 490, generator=torch.Generator().manual_seed(1))
    # one of 50 by chance, four standard errors of 3,000 guesses are 0.01
    assert right_of(guesses, torch.arange(3000) % 490, 50) == pytest.approx(1 / 50, abs=0.01)


def test_of_all_captions_the_right_one_is_the_highest():
    scores = torch.rand(100, 20, generator=torch.Generator().manual_seed(0))
    own = torch.arange(100) % 20
    assert right_of(scores, own, 20) == pytest.approx((scores.argmax(1) == own).float().mean().item())


def test_fewer_captions_are_not_harder():
    scores = torch.rand(1000, 20, generator=torch.Generator().manual_seed(0))
    shares = [right_of(scores, torch.arange(1000) % 20, count) for count in (2, 5, 20)]
    assert shares == sorted(shares, reverse=True)


def test_the_best_guidance_has_the_most_as_asked_then_the_highest_clip_score():
    found = {3.0: (0.7, 30), 5.0: (0.8, 29), 7.5: (0.8, 31)}
    named = {g: {"all_as_asked": share, "clip_score": score} for g, (share, score) in found.items()}
    assert best_guidance(named) == 7.5


def test_tiles_are_the_images_a_pixel_apart():
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    picture = tiles(images, columns=2)
    assert picture.size == (67, 67)
    shown = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    torch.testing.assert_close(shown[:, 1:33, 34:66].float() / 255, images[1], rtol=0, atol=1 / 255)


def test_cards_are_written_by_name_from_the_command_line(weights, runs, monkeypatch, capsys):
    monkeypatch.setattr(fashion, "load", lambda *_: untrained.garments())
    for name in ("mini-ddpm", "mini-clip"):
        (weights / name / "README.md").unlink(missing_ok=True)
        monkeypatch.setitem(CARDS, name, lambda *_, name=name: Card(name, "about", (), "measured", {"fid": 0.5}))
    assert main(["cards", "--runs", str(runs), "--only", "mini-ddpm"]) == 0
    assert (weights / "mini-ddpm" / "README.md").exists()
    assert not (weights / "mini-clip" / "README.md").exists()
    assert capsys.readouterr().out == "mini-ddpm {'fid': 0.5}\n"


def test_without_names_the_cards_are_those_of_the_trainings_there(monkeypatch, tmp_path):
    written = []
    monkeypatch.setattr("bench.training.__main__.Workshop.cards", lambda _, names: written.extend(names))
    (tmp_path / "mini-sd").mkdir()
    (tmp_path / "mini-bk").mkdir()
    assert main(["cards", "--runs", str(tmp_path)]) == 0
    assert written == ["mini-sd", "mini-bk-base", "mini-bk-small", "mini-bk-tiny"]


def test_no_trainings_are_one_clear_line(tmp_path, capsys):
    assert main(["cards", "--runs", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: expected trainings in {tmp_path}")
