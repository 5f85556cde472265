"""The command `metrics` prints what the registry names, in bounded memory (exact laws on made-up images)."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.harness.memory import PeakMemory
from deepcache.__main__ import main
from deepcache.metrics import fidelity
from deepcache.metrics.extractors import MiniExtractor
from deepcache.metrics.images import image_set
from deepcache.metrics.registry import METRICS, Metric
from deepcache.metrics.statistics import Features
from deepcache.sampling.store import Store
from tests.stores import make, manifest

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
MINI = ["--extractor", "mini-features"]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    np.savez(tmp_path / "images.npz", PIXELS)
    return tmp_path / "images.npz"


def test_samples_that_are_the_reference_are_perfect(images, capsys):
    assert main(["metrics", str(images), "--reference", str(images), *MINI, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["samples"] == 24
    assert found["extractor"] == "mini-features"
    assert found["fid"] == pytest.approx(0, abs=1e-6)
    assert found["sfid"] == pytest.approx(0, abs=1e-6)
    assert (found["precision"], found["recall"]) == (100, 100)


def test_the_table_has_unit_and_direction_and_a_dash_for_what_is_not_there(images, tmp_path, capsys):
    np.savez(tmp_path / "reference.npz", mu=np.zeros(128), sigma=np.eye(128))
    assert main(["metrics", str(images), "--reference", str(tmp_path / "reference.npz"), *MINI]) == 0
    lines = {line.split("  ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["sFID"].split()[1:] == ["-", "lower", "is", "better"]
    assert float(lines["FID"].split()[1]) > 0
    assert "higher is better" in lines["precision (%)"]


def test_the_number_of_features_is_said(images, capsys):
    assert main(["metrics", str(images), *MINI, "--num-features", "8"]) == 0
    assert "precision and recall: of at most 8 images a side, drawn with a fixed seed" in capsys.readouterr().out


def test_prompts_add_the_clip_score(images, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("a red sneaker on a blue background\n")
    options = [*MINI, "--prompts", str(tmp_path / "prompts.txt"), "--clip", "mini-clip", "--json"]
    assert main(["metrics", str(images), *options]) == 0
    assert 0 <= json.loads(capsys.readouterr().out)["clip_score"] <= 100


def test_noise_is_never_measured(images, tmp_path, capsys):
    """As samples and as a reference alike."""
    Store.create(tmp_path / "noise", manifest(weights="random sha256:00")).fill(range(4), make)
    for options in ([str(tmp_path / "noise")], [str(images), "--reference", str(tmp_path / "noise")]):
        assert main(["metrics", *options, *MINI]) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.count("\n") == 1
        assert "expected samples of trained weights" in shown.err


def test_inception_asks_for_a_reference(images, capsys):
    assert main(["metrics", str(images)]) == 2
    assert "expected --reference REF" in capsys.readouterr().err


def test_a_metric_in_the_registry_is_measured_and_printed(images, monkeypatch, capsys):
    """A value and an entry are all that a new metric takes."""
    quality = fidelity.quality
    monkeypatch.setitem(METRICS, "farthest", Metric("farthest", 0, "reference", is_higher_better=False, unit="m"))
    monkeypatch.setattr(
        fidelity, "quality", lambda samples, real: quality(samples, real) | {"farthest": samples.count / 2}
    )
    assert main(["metrics", str(images), *MINI]) == 0
    assert "farthest (m)      12.0000   lower is better" in capsys.readouterr().out
    assert main(["metrics", str(images), *MINI, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["farthest"] == 12


def written(folder: Path, kind: str, count: int) -> Path:
    """Images of noise, in an array or in a store's shards."""

    def pixels(seeds: range) -> np.ndarray:
        return RNG.integers(0, 256, (len(seeds), 32, 32, 3), dtype=np.uint8)

    path = folder / f"{count}.{kind}"
    if kind == "npz":
        np.savez(path, pixels(range(count)))
    else:
        Store.create(path, manifest(image_size=[32, 32], shard_size=100)).fill(range(count), pixels)
    return path


def peak_bytes(act: Callable[[], object]) -> int:
    """The most that an act holds at once: tensors, and arrays and other objects of Python."""
    tracemalloc.start()
    try:
        with PeakMemory() as memory:
            act()
        return memory.peak + tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def mean_colours(_extractor: MiniExtractor, images: torch.Tensor) -> Features:
    """Three features of an image, which take no time."""
    colours = images.mean(dim=(2, 3)).numpy()
    return Features(colours, colours, np.full((len(images), 2), 0.5, np.float32))


@pytest.mark.parametrize("kind", ["npz", "store"])
def test_ten_times_the_images_take_no_more_memory(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(MiniExtractor, "__call__", mean_colours)
    few, many = (written(tmp_path, kind, count) for count in (200, 2_000))

    def measure(path: Path) -> None:
        command = ["metrics", str(path), "--reference", str(path), "--num-features", "50", "--batch-size", "50"]
        assert main([*command, *MINI]) == 0

    measure(few)  # imports what stays in memory
    allowed = 1.1 * peak_bytes(lambda: measure(few))
    assert peak_bytes(lambda: measure(many)) < allowed
    assert peak_bytes(lambda: torch.cat(list(image_set(many).split(50)))) > allowed  # test of the test


def test_wrong_prompts_are_refused_before_anything_is_extracted(images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(MiniExtractor, "__call__", None)
    assert main(["metrics", str(images), *MINI, "--prompts", str(tmp_path / "none.txt")]) == 2
    assert "none.txt" in capsys.readouterr().err
