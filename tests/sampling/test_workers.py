"""Which worker a process is: exact, from the variables that torchrun, accelerate and Slurm are documented to set."""

from __future__ import annotations

import pytest

from deepcache.errors import DeepCacheError
from deepcache.sampling.seeds import Worker, worker


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
