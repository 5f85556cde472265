"""A number out of bounds ends in one line and exit code 2, before a model is loaded (exact)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deepcache import tune
from deepcache.__main__ import main
from deepcache.errors import DeepCacheError
from deepcache.plan import MOST_STEPS, CachePlan, quadratic, uniform
from deepcache.sampling.samples import sample
from deepcache.sampling.schedulers import num_calls
from deepcache.sampling.seeds import END_OF_SEEDS, MOST_SAMPLES, seeds_of
from deepcache.sampling.workload import Sampling, Workload

HUGE = 10**9
LONG = "9" * 5_000  # more digits than Python makes a number of
SAMPLE = ["sample", "--model", "no-such-model", "--out", "none", "--seeds", "0:2"]
TUNE = ["tune", "--model", "no-such-model", "--psnr-db", "30"]


@pytest.mark.parametrize("value", [str(HUGE), LONG, "0", "-1", "1.5", "x", ""], ids=lambda text: text[:20])
@pytest.mark.parametrize(
    "command",
    [
        *([*SAMPLE, option] for option in ("--num-steps", "--batch-size", "--shard-size", "--threads")),
        [*TUNE, "--num-seeds"],
        [*TUNE, "--batch-size"],
    ],
    ids=lambda words: f"{words[0]} {words[-1]}",
)
def test_a_number_out_of_bounds_is_refused_before_the_model_is_looked_for(capsys, command, value):
    with pytest.raises(SystemExit) as caught:
        main([*command[:-1], f"{command[-1]}={value}"])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "expected a whole number from 1 to " in line
    assert len(line) < 500


@pytest.mark.parametrize(
    "seeds",
    [
        *(f"0:{HUGE}", f"0:{MOST_SAMPLES + 1}", f"{END_OF_SEEDS - 1}:{END_OF_SEEDS + 1}", f"{2**64}:{2**64 + 2}"),
        *("2:2", "5:2", "-1:2", "2", f"0:{LONG}", f"{LONG}:{LONG}1", "a:b", ""),
    ],
    ids=lambda text: text[:40],
)
def test_seeds_out_of_bounds_are_refused(capsys, seeds):
    with pytest.raises(SystemExit) as caught:
        main([*SAMPLE[:-2], f"--seeds={seeds}"])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "expected seeds as FIRST:END, such as 0:50000, at most 10,000,000 of them and all below 2^63, got" in line
    assert len(line) < 600


@pytest.mark.parametrize("seeds", [range(MOST_SAMPLES), range(END_OF_SEEDS - 3, END_OF_SEEDS), range(7, 8)])
def test_seeds_within_bounds_are_taken(seeds):
    assert seeds_of(f"{seeds.start}:{seeds.stop}") == seeds


@pytest.mark.parametrize(
    "command",
    [
        ["macs", "--model", "mini-ldm", "--interval", "3", "--num-steps"],
        ["explain", "--model", "mini-ldm", "--interval", "3", "--num-steps"],
        [*TUNE[:1], "--model", "mini-ddpm", *TUNE[3:], "--num-steps"],
    ],
    ids=lambda words: words[0],
)
@pytest.mark.parametrize("steps", [MOST_STEPS + 1, HUGE])
def test_more_steps_than_any_generation_has_are_refused(capsys, command, steps):
    assert main([*command, str(steps)]) == 2
    line = f"error: expected num_steps to be at most 100,000, got {steps}; take fewer\n"
    assert capsys.readouterr().err.endswith(line)  # after diffusers' bar, where a model is loaded


@pytest.mark.parametrize(
    "make",
    [
        lambda steps: uniform(steps, 3),
        lambda steps: quadratic(steps, 3, 2, 1.5),
        lambda steps: CachePlan(steps, (0,)),
        lambda steps: Sampling("ddim", steps),
        lambda steps: num_calls(None, steps, "ddim"),
    ],
)
@pytest.mark.parametrize("steps", [HUGE, 10**5_000], ids=["a billion", "5,000 digits"])
def test_plans_and_settings_have_the_same_bound(make, steps):
    with pytest.raises(DeepCacheError, match="expected num_steps to be at most 100,000, got"):
        make(steps)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -float("inf")])
def test_a_guidance_scale_that_is_no_number_is_refused(scale):
    with pytest.raises(DeepCacheError, match="expected a finite guidance scale"):
        Workload(None, lambda _: {}, 1, {"guidance_scale": scale})


@pytest.mark.parametrize("seeds", [[END_OF_SEEDS], [3, 2**64], range(END_OF_SEEDS - 1, END_OF_SEEDS + 1), [-1]])
def test_whoever_samples_refuses_seeds_that_no_store_could_hold(seeds):
    """The pipeline is None, so it cannot be asked for anything before."""
    with pytest.raises(DeepCacheError, match=r"expected seeds from 0 to 2\^63 - 1"):
        sample(None, seeds, batch_size=2)
    with pytest.raises(DeepCacheError, match=r"expected seeds from 0 to 2\^63 - 1"):
        tune(None, psnr_db=30, seeds=list(seeds))


@pytest.mark.parametrize(("name", "value"), [("seeds", range(HUGE)), ("batch_size", HUGE), ("batch_size", 0)])
def test_tune_refuses_what_is_out_of_bounds_before_it_looks_at_the_pipeline(name, value):
    with pytest.raises(DeepCacheError, match=r"expected (the number of seeds|batch_size) to be"):
        tune(None, psnr_db=30, **{name: value})


def test_more_steps_than_a_solver_can_do_are_one_line(capsys):
    """DDIM has at most the training's number of steps; sampling and tuning refuse more alike."""
    for command in ([*SAMPLE[:1], "--out", "none", "--seeds", "0:2"], TUNE[:1] + TUNE[3:]):
        assert main([*command, "--model", "mini-ddpm", "--scheduler", "ddim", "--num-steps", "5000"]) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert re.match(r"error: expected a number of steps that (ddim|DDIMScheduler) can do, got 5000 \(", line)
    assert not Path("none").exists()


def sampled(folder: Path, *words: str) -> int:
    common = ["--model", "mini-ddpm", "--num-steps", "2", "--device", "cpu", "--out", str(folder)]
    return main(["sample", *common, *words])


def test_a_store_goes_on_with_its_own_batches_and_refuses_others(capsys, tmp_path):
    assert sampled(tmp_path, "--seeds", "0:2", "--batch-size", "2", "--shard-size", "3") == 0
    assert sampled(tmp_path, "--seeds", "0:4") == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        "manifest.json",
        "seeds-00000000-00000002.npz",
        "seeds-00000002-00000003.npz",
        "seeds-00000003-00000004.npz",
    }
    capsys.readouterr()
    assert sampled(tmp_path, "--seeds", "0:4", "--batch-size", "1", "--shard-size", "4") == 2
    assert "differs in batch_size (there 2, here 1); shard_size (there 3, here 4); take" in capsys.readouterr().err


def test_sample_does_not_count_a_file_that_is_not_the_stores(capsys, tmp_path):
    assert sampled(tmp_path / "a", "--seeds", "0:2", "--plan", "uniform,interval=2,order=0") == 0
    assert sampled(tmp_path / "b", "--seeds", "0:1") == 0
    shard = tmp_path / "a" / "seeds-00000000-00000002.npz"
    (tmp_path / "b" / shard.name).write_bytes(shard.read_bytes())
    (tmp_path / "a" / "manifest.json").unlink()
    capsys.readouterr()
    for folder, message in (
        ("a", "got 1 files of samples without it"),
        ("b", f"{shard.name}, which was made of other"),
    ):
        assert sampled(tmp_path / folder, "--seeds", "0:2") == 2
        line = capsys.readouterr().err.splitlines()[-1]  # after diffusers' bar
        assert line.startswith("error: expected ")
        assert message in line
    assert not (tmp_path / "a" / "manifest.json").exists()
