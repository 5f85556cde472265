"""At the paper's scale one page says what is missing, noise is never fidelity, and stores are read (exact laws)."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
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
from deepcache.models.architectures import architecture
from deepcache.models.registry import EMBEDDED, MODELS, PUBLISHED, Protocol
from deepcache.plan import uniform
from deepcache.results import record
from deepcache.results.layout import Layout, published
from deepcache.sampling.store import StoredImages

ROOT = Path(__file__).parents[2]
SEEDS = range(3)
PROTOCOL = Protocol("ddim", 2, 3, 0, 1.5, batch_size=2, timed_batch_size=1)
COUNTED = {"macs", "total_macs", "num_full", "num_shallow", "num_idle"}
TIMED = {"feature_bytes", "latency_s", "throughput", "speedup"}


def test_prompts_and_a_folder_that_cannot_be_used_are_told_before_anything_runs(pytester, tmp_path):
    """The hooks of the benches' conftest run on a project of one test, in this process."""
    (tmp_path / "file").write_text("")
    pytester.makepyfile("def test_bench(): raise AssertionError")
    pytester.makeconftest("from bench.conftest import pytest_addoption, pytest_configure")
    wrong = {"--prompts": tmp_path / "none.txt", "--images-dir": tmp_path / "file" / "images"}
    for option, value in wrong.items():
        done = pytester.runpytest_inprocess(option, str(value))
        assert done.ret == 4
        assert f"ERROR: {option}: " in done.stderr.str()
        assert str(value) in done.stderr.str()
        assert "Traceback" not in done.stderr.str()


def test_a_row_of_random_weights_runs_through(pytester, tmp_path, monkeypatch):
    """Table 2's CIFAR-10 at N = 2, on the real architecture: its MACs over two steps, its speed, and no fidelity.

    Nothing has to be there for it, as on a machine that has no models.
    """
    for name in ("DEEPCACHE_MODELS", "HF_HOME", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "nothing"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "nothing"))
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # by which pytest-benchmark disables itself
    short = ["--weights", "random", "--num-samples", "2", "--num-steps", "2", "--rounds", "1", "--device", "cpu"]
    results = tmp_path / "results.json"
    row = f"{ROOT}/bench/test_table2_ddpm.py::test_table2[CIFAR-10-N=2]"
    where = ["-c", str(ROOT / "pytest.ini"), "--rootdir", str(ROOT), "-p", "no:cacheprovider", "--scale", "paper"]
    done = pytester.runpytest_inprocess(*where, row, *short, "--benchmark-json", str(results))
    assert done.ret == 0
    assert "deepcache: paper scale, models on cpu" in done.stdout.str()
    (found,) = record.read(results)
    expected = architecture("ddpm-cifar10").cost().mean(uniform(2, 2, 2))
    assert found.metrics["macs"] == round(expected)
    assert found.metrics.keys() == {*COUNTED, *TIMED}
    assert (found.settings["weights"], found.settings["num_samples"]) == ("random", 2)


def test_what_a_user_can_mend_is_one_line_in_the_middle_of_a_bench(pytester):
    """A bench raises the library's error, say of a number of steps; the same project without our hook is noticed."""
    pytester.makepyfile("""
        from deepcache.errors import DeepCacheError

        def test_bench():
            raise DeepCacheError("expected a number of steps that pndm can do")
    """)
    pages = []
    for conftest in ("", "from bench.conftest import pytest_runtest_call"):
        pytester.makeconftest(conftest)
        page = pytester.runpytest_inprocess("-p", "no:randomly").stdout.str().split("short test summary")[0]
        pages.append("raise DeepCacheError" in page)
        assert "expected a number of steps that pndm can do" in page
    assert pages == [True, False]  # whether there is a traceback


def test_the_scales_name_known_models():
    assert set(SCALES["mini"].models) <= set(EMBEDDED)
    assert set(SCALES["paper"].models) <= set(PUBLISHED)


def test_the_papers_protocols_are_those_that_it_printed():
    rows = {
        row["model"]: row for row in published()["rows"] if row["table"] in ("Table 1", "Table 14") and "steps" in row
    }
    ldm, ddpm, sd = (MODELS[name].protocol for name in ("ldm-4-g", "ddpm-cifar10", "sd-1.5"))
    assert ldm.num_steps == rows["LDM-4-G"]["steps"]
    assert (ldm.guidance_scale, ldm.branch) == (1.5, 0)
    assert (ddpm.scheduler, ddpm.branch) == ("ddim-quadratic", 2)
    assert (sd.scheduler, sd.guidance_scale, sd.branch) == ("plms", 7.5, 1)


@pytest.fixture(scope="module")
def loaded() -> Workload:
    return Workload.of("mini-ldm", models.load("mini-ldm"), PROTOCOL, extractor=MiniExtractor.load())


@pytest.fixture
def workload(loaded: Workload) -> Workload:
    """A workload that has no samples yet."""
    return replace(loaded)


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
    assert metrics_of(noise).keys() == COUNTED
    assert metrics_of(workload).keys() > {"psnr_db", "fid_drift"}  # of trained weights they are


def test_uncached_samples_are_not_compared_with_themselves(workload):
    assert metrics_of(workload, interval=1).keys() == COUNTED


class Options:
    """Stands for pytest's configuration."""

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
    """Embedded models run on the CPU unless told otherwise, since their baselines are the CPU's."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_of(Options(**given)) == expected


@pytest.fixture(scope="module")
def prompted():
    return models.load("mini-sd")


@pytest.mark.parametrize(("asked", "expected"), [(None, 3), (2, 2)])
def test_at_the_papers_scale_every_prompt_is_sampled_once(monkeypatch, tmp_path, prompted, asked, expected):
    """PartiPrompts has 1,632, where the protocol's 5,000 are COCO's."""
    (tmp_path / "PartiPrompts.tsv").write_text("Prompt\na\nb\nc\n")
    monkeypatch.setattr(loading, "_inception", lambda _: MiniExtractor.load())
    monkeypatch.setattr(loading, "_paper_clip", lambda _: None)
    monkeypatch.setattr(models, "load", lambda *_, **__: prompted)
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
    monkeypatch.setattr("deepcache.sampling.workload.sample", lambda *_, **__: pytest.fail("sampled again"))
    after = replace(workload, stores=tmp_path).samples(run, SEEDS)
    assert torch.equal(torch.cat(list(after.images.split(2))), torch.cat(list(before.images.split(3))))
    assert before.cache is not None
    assert after.cache is None


def test_a_row_reads_its_stores_for_features_and_for_errors_alone(workload, tmp_path, monkeypatch):
    """The weights are hashed once."""
    reads: list[StoredImages] = []
    hashed: list[str] = []
    split = StoredImages.split
    monkeypatch.setattr(StoredImages, "split", lambda images, size: reads.append(images) or split(images, size))
    monkeypatch.setattr("deepcache.sampling.workload.sha256", lambda: hashed.append("00") or sha256())
    assert metrics_of(replace(workload, stores=tmp_path)).keys() > {"psnr_db", "tipped"}
    assert len(reads) == 4  # of two stores
    assert len(hashed) == 1
