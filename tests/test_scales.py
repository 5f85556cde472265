"""The paper's scale: what is missing is one page, noise is never fidelity, samples come out of stores (exact laws)."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.harness import loading
from bench.harness.loading import load_workload
from bench.harness.measure import Measure, describe
from bench.harness.scales import SCALES, device_of
from bench.harness.workload import Run, Workload
from deepcache import models
from deepcache.errors import DeepCacheError
from deepcache.metrics.extractors import MiniExtractor
from deepcache.models import CATALOG, EMBEDDED
from deepcache.models.architectures import architecture
from deepcache.plan import uniform
from deepcache.results import record
from deepcache.results.layout import Layout
from deepcache.results.published import published
from deepcache.sampling.identity import weights_hash
from deepcache.sampling.protocols import PROTOCOLS, Protocol
from deepcache.sampling.stored import StoredImages

ROOT = Path(__file__).parents[1]
SEEDS = range(3)
PROTOCOL = Protocol("ddim", 4, 3, 0, 1.5, batch_size=2, timed_batch_size=1)
TIMED = {"feature_bytes", "latency_s", "throughput", "speedup"}


def run(tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """pytest on a machine that has nothing."""
    nothing = {name: str(tmp_path / "nothing") for name in ("DEEPCACHE_MODELS", "HF_HOME", "TORCH_HOME")}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--scale", "paper", *options]
    environment = {**os.environ, **nothing}
    environment.pop("PYTEST_XDIST_WORKER", None)  # by which pytest-benchmark disables itself
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)


def test_prompts_and_a_folder_that_cannot_be_used_are_told_before_anything_runs(tmp_path):
    (tmp_path / "file").write_text("")
    wrong = {"--prompts": tmp_path / "none.txt", "--images-dir": tmp_path / "file" / "images"}
    for option, value in wrong.items():
        done = run(tmp_path, "--scale", "mini", "bench/test_workflows.py", "--collect-only", option, str(value))
        assert done.returncode == 4
        assert f"ERROR: {option}: " in done.stderr
        assert str(value) in done.stderr
        assert "Traceback" not in done.stderr


def test_a_row_of_random_weights_runs_through(tmp_path):
    """Table 2's CIFAR-10 at N = 2, on the real architecture: its MACs over three steps, its speed, and no fidelity.

    Nothing has to be there for it.
    """
    short = ["--weights", "random", "--num-samples", "2", "--num-steps", "3", "--rounds", "1", "--device", "cpu"]
    results = tmp_path / "results.json"
    row = "bench/test_table2_ddpm.py::test_table2[CIFAR-10-N=2]"
    done = run(tmp_path, row, *short, "--benchmark-json", str(results))
    assert done.returncode == 0, done.stdout
    assert "deepcache: paper scale, models on cpu" in done.stdout
    (found,) = record.read(results)
    expected = architecture("ddpm-cifar10").cost().mean(uniform(3, 2, 2))
    assert found.metrics["macs"] == round(expected)
    assert found.metrics.keys() == {"macs", "total_macs", "num_full", "num_shallow", *TIMED}
    assert (found.settings["weights"], found.settings["num_samples"]) == ("random", 2)


def test_what_a_user_can_mend_is_one_line_in_the_middle_of_a_bench():
    asked = ["bench/test_table1_imagenet.py", "-q", "--benchmark-disable", "--num-steps", "2", "--num-samples", "2"]
    row = ["--schedulers", "pndm", "-k", "uniform and N20"]  # which needs more steps
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *asked, *row]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False).stdout
    assert shown.count("expected a number of steps that pndm can do") == 1
    assert "test_table1_imagenet.py:" not in shown.split("short test summary")[0]  # no traceback


def test_the_scales_name_known_models_with_protocols():
    assert set(SCALES["mini"].models) <= set(EMBEDDED) & set(PROTOCOLS)
    assert set(SCALES["paper"].models) <= set(CATALOG) & set(PROTOCOLS)


def test_the_papers_protocols_are_those_that_it_printed():
    rows = {
        row["model"]: row for row in published()["rows"] if row["table"] in ("Table 1", "Table 14") and "steps" in row
    }
    assert PROTOCOLS["ldm-4-g"].num_steps == rows["LDM-4-G"]["steps"]
    assert (PROTOCOLS["ldm-4-g"].guidance_scale, PROTOCOLS["ldm-4-g"].branch) == (1.5, 0)
    assert (PROTOCOLS["ddpm-cifar10"].scheduler, PROTOCOLS["ddpm-cifar10"].branch) == ("ddim-quadratic", 2)
    assert (PROTOCOLS["sd-1.5"].scheduler, PROTOCOLS["sd-1.5"].guidance_scale, PROTOCOLS["sd-1.5"].branch) == (
        "plms",
        7.5,
        1,
    )


@pytest.fixture
def workload() -> Workload:
    return Workload("mini-ldm", models.load("mini-ldm"), MiniExtractor.load(), None, PROTOCOL)


class Untimed:
    enabled = False
    group = None


def metrics_of(workload: Workload, interval: int = 2) -> dict[str, float]:
    kept: list[dict[str, float]] = []
    measure = Measure(
        Untimed(), lambda **record: kept.append(record["metrics"]), lambda _: pytest.fail("no reference"), 1
    )
    run = workload.every(interval) if interval > 1 else workload.uncached()
    measure(
        Layout("table1"), {"row": 1}, workload, run, workload.uncached(), SEEDS, with_quality=not workload.is_trained
    )
    return kept[0]


def test_nothing_computed_from_noise_is_recorded(workload):
    noise = replace(workload, weights="random", extractor=None)
    assert metrics_of(noise).keys() == {"macs", "total_macs", "num_full", "num_shallow"}
    assert metrics_of(workload).keys() > {"psnr_db", "fid_drift"}  # of trained weights they are


def test_uncached_samples_are_not_compared_with_themselves(workload):
    assert metrics_of(workload, interval=1).keys() == {"macs", "total_macs", "num_full", "num_shallow"}


class Options:
    """pytest's configuration, as far as the benches ask it."""

    def __init__(self, **given: object) -> None:
        self.given = {"scale": "mini", "weights": "trained", **given}

    def getoption(self, name: str) -> object:
        return self.given.get(name)


def test_embedded_models_have_no_random_weights():
    with pytest.raises(DeepCacheError, match="expected --scale paper"):
        load_workload("mini-ldm", Options(weights="random"))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "cpu"),
        ({"scale": "paper"}, "cuda"),
        ({"device": "cuda:1"}, "cuda:1"),
        ({"scale": "paper", "device": "cpu"}, "cpu"),
    ],
)
def test_the_papers_models_run_on_a_gpu_where_there_is_one(monkeypatch, given, expected):
    """The embedded ones do where they are told to: their baselines are the CPU's."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_of(Options(**given)) == expected


@pytest.mark.parametrize(("asked", "expected"), [(None, 3), (2, 2)])
def test_at_the_papers_scale_every_prompt_is_sampled_once(monkeypatch, tmp_path, asked, expected):
    """PartiPrompts has 1,632, where the protocol's 5,000 are COCO's."""
    (tmp_path / "PartiPrompts.tsv").write_text("Prompt\na\nb\nc\n")
    monkeypatch.setattr(loading, "_inception", lambda _: MiniExtractor.load())
    monkeypatch.setattr(loading, "_paper_clip", lambda _: None)
    mini = models.load("mini-sd")
    monkeypatch.setattr(models, "load", lambda *_, **__: mini)
    options = Options(scale="paper", prompts=tmp_path / "PartiPrompts.tsv", num_samples=asked, device="cpu")
    found = load_workload("sd-1.5", options)
    assert len(found.seeds()) == expected
    assert found.conditions(found.seeds())["prompt"] == ["a", "b", "c"][:expected]
    assert describe(found, found.uncached(), found.uncached(), SEEDS)["prompts"] == "PartiPrompts.tsv"


def test_samples_out_of_a_store_are_those_of_memory_in_bytes(workload, tmp_path):
    stored = replace(workload, stores=tmp_path)
    for run in (workload.uncached(), workload.every(2), replace(workload.every(2), zeroed=True)):
        # in batches of two, as the store's
        expected = sample_of(workload, run)
        assert torch.equal(stored.pictures(run, SEEDS), expected)
    assert len(list(tmp_path.iterdir())) == 3


def test_some_pictures_of_a_store_are_read_without_their_features(workload, tmp_path):
    stored = replace(workload, stores=tmp_path, extractor=None)
    expected = sample_of(workload, workload.uncached())
    assert torch.equal(stored.pictures(workload.uncached(), SEEDS, [2, 0]), expected[[2, 0]])


def sample_of(workload: Workload, run: Run) -> torch.Tensor:
    return (workload.pictures(run, SEEDS) * 255).round() / 255


def test_a_finished_store_is_read_and_not_sampled_again(workload, tmp_path, monkeypatch):
    run = workload.every(2)
    before = replace(workload, stores=tmp_path).samples(run, SEEDS)
    monkeypatch.setattr("deepcache.sampling.batches.sample", lambda *_, **__: pytest.fail("sampled again"))
    after = replace(workload, stores=tmp_path).samples(run, SEEDS)
    assert torch.equal(torch.cat(list(after.images.split(2))), torch.cat(list(before.images.split(3))))
    assert before.cache is not None
    assert after.cache is None


def test_a_row_reads_its_stores_for_features_and_for_errors_alone(workload, tmp_path, monkeypatch):
    """And hashes the weights once."""
    reads: list[StoredImages] = []
    hashed: list[str] = []
    split = StoredImages.split
    monkeypatch.setattr(StoredImages, "split", lambda images, size: reads.append(images) or split(images, size))
    monkeypatch.setattr("bench.harness.workload.weights_hash", lambda pipe: hashed.append("00") or weights_hash(pipe))
    assert metrics_of(replace(workload, stores=tmp_path)).keys() > {"psnr_db", "tipped"}
    assert len(reads) == 4  # of two stores
    assert len(hashed) == 1
