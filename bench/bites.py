"""What the gate catches and what it lets pass: `python bench/bites.py`, which writes bench/results/gate/README.md.

A baseline of three honest runs, ten honest re-runs, and three runs with the library broken on purpose
(`bench/broken.py`), of a few rows of Table 1 and the times of mini-ldm's shallow steps.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BENCH = Path(__file__).parent
OUT = BENCH / "results" / "gate" / "README.md"
BASELINE_RUNS, HONEST_RUNS = 3, 10
ROWS = "(test_table1 and (uncached or uniform-N5) and not order) or (shallow_step and (mini-ldm-0 or mini-ldm-1))"
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(BENCH / "test_table1_imagenet.py")]
NUM_SAMPLES, NUM_STEPS = "16", "20"
PYTEST += [str(BENCH / "test_macs.py"), "--num-samples", NUM_SAMPLES, "--num-steps", NUM_STEPS, "-k", ROWS]
DEEPCACHE = [sys.executable, "-m", "deepcache"]


def run(*options: str) -> subprocess.CompletedProcess[str]:
    """A run of the benches, from bench/ so that its plugins are found."""
    environment = {**os.environ, "PYTHONPATH": str(BENCH)}
    return subprocess.run([*PYTEST, *options], capture_output=True, text=True, env=environment, check=False)


def verdict(name: str, found: subprocess.CompletedProcess[str]) -> str:
    """A line of the log: the exit code and what the gate said."""
    said = [line.strip() for line in found.stdout.splitlines() if "->" in line or "changes by" in line]
    reasons = "<br>".join(said[:4]) + (f"<br>and {len(said) - 4} more" if len(said) > 4 else "")
    print(f"{name}: exit code {found.returncode}", *said[:4], sep="\n    ", flush=True)
    return f"| {name} | {found.returncode} | {reasons or 'no regression'} |"


def commit() -> str:
    """What was measured; "-dirty" where files differ from it."""
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
        honest = [run("--gate", str(baseline)) for _ in range(HONEST_RUNS)]
        minutes = (time.monotonic() - started) / 60
        lines = [verdict(f"honest run {number}", found) for number, found in enumerate(honest, 1)]
        broken = [run("--gate", str(baseline), "-p", "broken", "--break", how) for how in ("zeros", "stage", "slow")]
        names = ("features replaced by zeros", "one stage more than needed", "shallow steps slower by a fifth")
        lines += [verdict(name, found) for name, found in zip(names, broken, strict=True)]
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(
        "# What the gate catches\n\n"
        f"`python bench/bites.py` at commit {commit()}: {BASELINE_RUNS} runs make a baseline of their own, "
        f"{HONEST_RUNS} honest ones are compared with it ({minutes:.0f} minutes on {os.cpu_count()} cores), then three "
        f"with `bench/broken.py`. They are of two rows of Table 1, of {NUM_SAMPLES} samples and {NUM_STEPS} steps, and "
        "the times of two shallow steps; `.ci/run` holds all rows against bench/baselines.\n\n"
        "| run | exit code | what the gate said |\n| --- | --- | --- |\n" + "\n".join(lines) + "\n"
    )
    return int(any(found.returncode for found in honest) or not all("regression:" in found.stdout for found in broken))


if __name__ == "__main__":
    sys.exit(main())
