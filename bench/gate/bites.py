"""Show what the gate catches and what it lets pass: `python -m bench.gate.bites` writes bench/results/gate/README.md.

Three honest runs of a few rows of Table 1 and of mini-ldm's shallow steps make a baseline. Ten more honest runs must
pass, and three runs with the library broken on purpose (`bench/gate/broken.py`) must fail. Then the committed records
of all experiments are held against the committed baseline, as they are and with planted regressions
(`bench/gate/planted.py`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.gate.planted import planted

BENCH = Path(__file__).parents[1]
OUT = BENCH / "results" / "gate" / "README.md"
RECORDS, COMMITTED = BENCH / "results" / "bench" / "records.jsonl", BENCH / "baselines" / "mini.json"
BASELINE_RUNS, HONEST_RUNS = 3, 10
ROWS = "(test_table1 and (uncached or uniform-N5) and not order) or (shallow_step and (mini-ldm-0 or mini-ldm-1))"
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(BENCH / "test_table1_imagenet.py")]
NUM_SAMPLES, NUM_STEPS = "16", "20"
PYTEST += [str(BENCH / "test_macs.py"), "--num-samples", NUM_SAMPLES, "--num-steps", NUM_STEPS, "-k", ROWS]
HEAD = "| run | exit code | what the gate said |\n| --- | --- | --- |\n"
DEEPCACHE = [sys.executable, "-m", "deepcache"]


def run(*options: str) -> subprocess.CompletedProcess[str]:
    """Run the rows under pytest, with the root on the path, so that the plugin `bench.gate.broken` is found."""
    environment = {**os.environ, "PYTHONPATH": str(BENCH.parent)}
    return subprocess.run([*PYTEST, *options], capture_output=True, text=True, env=environment, check=False)


def verdict(name: str, found: subprocess.CompletedProcess[str]) -> str:
    """Return a line of the log: the exit code and what the gate said."""
    kinds = ("regression: ", "cannot be compared: ", "error: ")
    said = [line.strip() for line in (found.stdout + found.stderr).splitlines() if line.startswith(kinds)]
    reasons = "<br>".join(said[:4]) + (f"<br>and {len(said) - 4} more" if len(said) > 4 else "")
    print(f"{name}: exit code {found.returncode}", *said[:4], sep="\n    ", flush=True)
    return f"| {name} | {found.returncode} | {reasons or 'no regression'} |"


def gated(folder: Path, entries: list[dict[str, Any]]) -> subprocess.CompletedProcess[str]:
    """Hold these records against the committed baseline."""
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    command = [*DEEPCACHE, "gate", str(COMMITTED), path.name]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)


def of_records(folder: Path) -> tuple[list[str], bool]:
    """Return the lines about the committed records, and whether all have the right exit code."""
    honest = [json.loads(line) for line in RECORDS.read_text().splitlines()]
    done = [("as they are", 0, gated(folder, honest))]
    done += [(name, code, gated(folder, entries)) for name, code, entries in planted(honest)]
    return [verdict(name, found) for name, _, found in done], all(code == found.returncode for _, code, found in done)


def commit() -> str:
    """Return the commit that is measured, with "-dirty" if files differ from it."""
    asked = ["git", "-C", str(BENCH), "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        baseline = Path(folder, "baseline.json")
        files = [Path(folder, f"{number}.json") for number in range(BASELINE_RUNS)]
        for file in files:
            run("--benchmark-json", str(file))
        subprocess.run([*DEEPCACHE, "gate", "--update", str(baseline), *map(str, files)], check=True)
        started = time.monotonic()
        honest = [run("--paper-gate", str(baseline)) for _ in range(HONEST_RUNS)]
        minutes = (time.monotonic() - started) / 60
        lines = [verdict(f"honest run {number}", found) for number, found in enumerate(honest, 1)]
        broken = [
            run("--paper-gate", str(baseline), "-p", "bench.gate.broken", "--break", how)
            for how in ("zeros", "stage", "slow")
        ]
        names = ("features replaced by zeros", "one stage more than needed", "shallow steps slower by a fifth")
        lines += [verdict(name, found) for name, found in zip(names, broken, strict=True)]
        planted_lines, are_right = of_records(Path(folder))
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(
        "# What the gate catches\n\n"
        f"`python -m bench.gate.bites` at commit {commit()}: {BASELINE_RUNS} runs make a baseline of their own, "
        f"{HONEST_RUNS} honest ones are compared with it ({minutes:.0f} minutes on {os.cpu_count()} cores), then three "
        f"with `bench/gate/broken.py`. They are of two rows of Table 1 ({NUM_SAMPLES} samples, {NUM_STEPS} steps), "
        "and the times of two shallow steps; `.ci/run` holds all rows against bench/baselines.\n\n"
        f"{HEAD}{chr(10).join(lines)}\n\n"
        "The committed records of `tox -e bench` against bench/baselines, and with what `bench/gate/planted.py` plants "
        "in them (exit code 1: a regression, 2: what cannot be compared or read):\n\n"
        f"{HEAD}{chr(10).join(planted_lines)}\n"
    )
    are_caught = all("regression:" in found.stdout for found in broken)
    return int(any(found.returncode for found in honest) or not (are_caught and are_right))


if __name__ == "__main__":
    sys.exit(main())
