"""Seeds and numbers out of bounds end in one line before a model is loaded, and every seed has one worker (exact laws).

Workers are told by the variables that torchrun, accelerate and Slurm are documented to set.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from deepcache import tune
from deepcache.__main__ import main
from deepcache.errors import DeepCacheError
from deepcache.plan import MOST_STEPS, CachePlan, quadratic, uniform
from deepcache.sampling.samples import sample
from deepcache.sampling.schedulers import num_calls
from deepcache.sampling.seeds import END_OF_SEEDS, MOST_SAMPLES, Worker, gaps, joined, seeds_of, worker
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
    ],
    ids=lambda words: words[0],
)
@pytest.mark.parametrize("steps", [MOST_STEPS + 1, HUGE])
def test_more_steps_than_any_generation_has_are_refused(capsys, command, steps):
    assert main([*command, str(steps)]) == 2
    line = f"error: expected num_steps to be at most 100,000, got {steps}; take fewer\n"
    assert capsys.readouterr().err.endswith(line)


@pytest.mark.parametrize("steps", [MOST_STEPS + 1, HUGE])
def test_more_steps_are_refused_before_a_model_is_loaded(capsys, steps):
    with pytest.raises(SystemExit) as exit_:
        main([*TUNE[:1], "--model", "mini-ddpm", *TUNE[3:], "--num-steps", str(steps)])
    assert exit_.value.code == 2
    assert f"expected a whole number from 1 to 100,000, got '{steps}'" in capsys.readouterr().err


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


def slurm(number: int, count: int, first: int = 0, step: int = 1) -> dict[str, str]:
    values = {"ID": number, "COUNT": count, "MIN": first, "MAX": first + (count - 1) * step, "STEP": step}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        (None, {}, Worker()),
        (None, {"RANK": "2", "WORLD_SIZE": "3", "LOCAL_RANK": "1"}, Worker(2, 3, 1)),
        (None, {"WORLD_SIZE": "1", "RANK": "0"}, Worker()),
        (None, slurm(5, 8), Worker(5, 8)),
        (None, slurm(4, 4, first=1), Worker(3, 4)),
        (None, slurm(10, 3, first=0, step=5), Worker(2, 3)),
        (None, slurm(7, 1, first=7), Worker(0, 1)),
        (None, {**slurm(2, 3, first=1), "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3"}, Worker(7, 12, 3)),
        ("0/1", slurm(5, 8), Worker()),
        ("7/9", {"RANK": "2", "WORLD_SIZE": "3", "LOCAL_RANK": "1"}, Worker(7, 9, 1)),
    ],
)
def test_a_worker_is_who_its_starter_says(text, environment, expected):
    assert worker(text, environment) == expected


def test_all_processes_of_all_tasks_of_an_array_are_different_workers():
    started = [{**slurm(task, 3, first=2), "RANK": str(r), "WORLD_SIZE": "4"} for task in (2, 3, 4) for r in range(4)]
    assert {worker(None, environment) for environment in started} == {Worker(rank, 12) for rank in range(12)}


@pytest.mark.parametrize(
    ("text", "environment", "message"),
    [
        ("3", {}, "expected a worker as RANK/COUNT"),
        ("-1/3", {}, "expected a worker as RANK/COUNT"),
        ("3/3", {}, r"expected a worker's rank below the number of workers, got 3/3"),
        ("0/0", {}, "the number of workers"),
        (None, {"RANK": "0"}, "only one is set"),
        (None, {"WORLD_SIZE": "2"}, "only one is set"),
        (None, {"RANK": "x", "WORLD_SIZE": "2"}, "expected RANK to be a whole number, got 'x'"),
        (None, {"RANK": "2", "WORLD_SIZE": "2"}, r"expected a worker's rank below the number of workers, got 2/2"),
        (None, {**slurm(7, 2, first=3)}, "expected a Slurm array of evenly spaced ids"),
        (None, slurm(6, 3, first=0, step=5), "expected a Slurm array of evenly spaced ids"),
    ],
)
def test_what_makes_no_worker_is_refused_in_one_line(text, environment, message):
    with pytest.raises(DeepCacheError, match=message) as caught:
        worker(text, environment)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_every_shard_has_one_worker_that_depends_on_its_number_alone(count):
    def shares(seeds: range) -> dict[range, int]:
        return {part: rank for rank in range(count) for part in Worker(rank, count).share(seeds, 4)}

    found = shares(range(3, 200))
    assert sorted(seed for part in found for seed in part) == list(range(3, 200))
    assert all(found[part] == rank for part, rank in shares(range(48, 96)).items())


class Counted(list):
    """A list that counts how often it is asked for an element."""

    asked = 0

    def __getitem__(self, place: int) -> range:
        self.asked += 1
        return super().__getitem__(place)


def test_gaps_look_at_no_more_ranges_than_they_need():
    """Logarithmically many (a count): all gaps of n shards take n log n looks, and not n^2."""
    there = Counted(range(8 * i, 8 * i + 4) for i in range(4_096))
    for number in range(4_096):
        assert list(gaps(range(8 * number, 8 * number + 8), there)) == [range(8 * number + 4, 8 * number + 8)]
    assert there.asked < 4_096 * 20


@pytest.mark.parametrize("seed", range(30))
def test_gaps_are_what_is_missing(seed):
    """The oracle is arithmetic on sets of seeds, for random ranges."""
    rng = np.random.default_rng(seed)
    ends = rng.integers(0, 40, (rng.integers(0, 8), 2)).tolist()
    parts = sorted((range(min(pair), max(pair) + 1) for pair in ends), key=lambda part: part.start)
    there = joined(parts)
    covered = {number for part in parts for number in part}
    assert [number for part in there for number in part] == sorted(covered)
    wanted = range(*sorted(rng.integers(0, 45, 2).tolist()))
    found = list(gaps(wanted, there))
    assert [number for part in found for number in part] == [number for number in wanted if number not in covered]
    assert all(part for part in found)


def test_seeds_fall_into_shards_and_blocks():
    assert list(Worker().share(range(3, 9), 4)) == [range(3, 4), range(4, 8), range(8, 9)]
    assert list(Worker(1, 2).share(range(3, 13), 4)) == [range(4, 8), range(12, 13)]
