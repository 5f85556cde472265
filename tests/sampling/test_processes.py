"""One process, several workers, or workers that are killed: all write the same files (exact, by hash)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deepcache.__main__ import main
from deepcache.sampling.store import Store
from tests.stores import hashes

HERE = Path(__file__).parent
JOB = (
    "-m deepcache sample --model mini-ddpm --plan uniform,interval=2,order=1 --seeds 0:8 --num-steps 3 --shard-size 2 "
    "--device cpu"
)
ACCELERATE = (
    # with --cpu, it would start one process whatever the number
    "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no "
    "--dynamo_backend no"
)
TORCHRUN = "-m torch.distributed.run --nproc_per_node 2"


def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", **variables}
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment, timeout=300, check=False
    )


def shards(folder: Path) -> dict[str, str]:
    return {name: digest for name, digest in hashes(folder).items() if name != "manifest.json"}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sampled by a process that begins with two threads."""
    out, threads = tmp_path_factory.mktemp("stores") / "alone", torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert main([*JOB.split()[2:], "--out", str(out)]) == 0
    finally:
        torch.set_num_threads(threads)
    return out


@pytest.mark.parametrize("launcher", [ACCELERATE, TORCHRUN], ids=["accelerate", "torchrun"])
def test_a_launcher_starts_as_many_workers_as_it_is_asked_for(tmp_path, launcher):
    """A launcher has to start the workers; the test of a Slurm array shows what a worker does with its number."""
    script = tmp_path / "worker.py"
    script.write_text("from deepcache.sampling.seeds import worker; print(repr(worker()), flush=True)")
    done = run(*launcher.split(), str(script))
    assert done.returncode == 0, done.stderr
    assert all(f"Worker(rank={rank}, count=2, local_rank={rank})" in done.stdout for rank in range(2))


def test_the_tasks_of_a_slurm_array_write_the_files_of_one(tmp_path, alone, monkeypatch):
    """One after the other in this process: what tells them apart is their variables."""
    out = tmp_path / "array"
    for task in ("4", "5"):
        task_of = {"SLURM_ARRAY_TASK_ID": task, "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "4"}
        for name, value in task_of.items():
            monkeypatch.setenv(name, value)
        assert not out.exists() or Store.open(out).missing(range(8))
        assert main([*JOB.split()[2:], "--out", str(out)]) == 0
    assert shards(out) == shards(alone)


def test_a_store_of_another_plan_is_refused_in_one_line(alone, capsys):
    assert main([*JOB.replace("interval=2", "interval=3").split()[2:], "--out", str(alone)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert "plan.full_steps (there [0, 2], here [0])" in lines[0]


def test_twenty_kills_lose_and_double_nothing(tmp_path):
    done = run(str(HERE / "killed.py"), str(tmp_path), OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"] >= 20
    assert found["left"] > 0  # some were hit while they wrote
    assert found["is_equal"]
    assert not found["is_refused"]
    assert found["broken_is_refused"]  # writing in place would have been found out
