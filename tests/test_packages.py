"""What a plain install brings runs, and a package that is missing is named in one line (exact laws)."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from tests.examples import entries, table1_record

pytestmark = pytest.mark.xdist_group("packages")  # what all of them read is made once

ROOT = Path(__file__).parents[1]
BENCH, METRICS = "pip install 'deepcache-bench[bench]'", "pip install 'deepcache-bench[metrics]'"
TUNE = ("tune", "--model", "mini-sd", "--num-steps", "4")
CASES = [  # package, what to do, command
    ("torch_fidelity", METRICS, ("metrics", "images", "--save-statistics", "own.npz")),
    *(
        (package, METRICS, ("metrics", "images", "--extractor", "mini-features", "--prompts", "prompts.txt"))
        for package in ("open_clip", "torchvision")
    ),
    ("open_clip", METRICS, (*TUNE, "--clip-loss", "1")),
    *((package, METRICS, (*TUNE, "--perceptual", "1", "--lpips-weights", "x")) for package in ("lpips", "torchvision")),
    *((package, BENCH, ("tables", "results.jsonl")) for package in ("pandas", "tabulate")),
    ("pandas", BENCH, ("report", "results.jsonl")),
]
FIRST = [  # commands that a plain install runs
    "try mini-ddpm --num-steps 10 --num-images 2 --out look.html",
    "explain --model mini-ddpm --num-steps 10 --interval 3",
    "tune --model mini-ddpm --num-steps 4 --speedup 1.5 --num-seeds 12 --branches=-1 --orders 1 --out plan.json",
]
# One process imports what a plain install brings; a fork of it runs each command, and another one the README's example.
RUN = """
import contextlib, io, json, os, sys, traceback

first, cases, absent, example = json.loads(sys.argv[1])
sys.modules |= dict.fromkeys(absent)

from deepcache.search import tuner
from diffusers import StableDiffusionPipeline


def run_twice():
    for _ in range(2):
        exec(example, {})
    return 0


def run(package, command):
    for name in absent:
        del sys.modules[name]
    sys.modules[package] = None
    from deepcache.__main__ import main
    return main(command)


def run_plainly(command):
    from deepcache.__main__ import main
    return main(command)


def answer(act, *arguments):
    out, said = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(out):
            return act(*arguments), out.getvalue(), said.getvalue()
    except BaseException:
        return None, out.getvalue(), traceback.format_exc()


acts = [(run_plainly, command) for command in first] + [(run, package, command) for package, _, command in cases]
for act, *arguments in [(run_twice,), *acts]:
    read, write = os.pipe()
    if not os.fork():
        os.write(write, json.dumps(answer(act, *arguments)).encode())
        os._exit(0)
    os.close(write)
    print(open(read).read())
    os.wait()
"""
Answer = tuple[int | None, str, str]  # the exit status, None after an exception; standard output; standard error


def closure(names: set[str]) -> set[str]:
    """Distributions and all that they require, without extras."""
    found: set[str] = set()
    while names:
        found |= names
        asked = [Requirement(text) for name in names for text in _requires(name)]
        needed = [each for each in asked if each.marker is None or each.marker.evaluate({"extra": ""})]
        names = {str(canonicalize_name(each.name)) for each in needed} - found
    return found


def _requires(name: str) -> list[str]:
    try:
        return requires(name) or []
    except PackageNotFoundError:  # torch's own requirements, in builds for the CPU
        return []


PLOTTED = [  # enough points for a plot
    table1_record("uncached", speedup=1.0, psnr_median_db=80.0),
    table1_record("uniform", 3, speedup=2.4, psnr_median_db=40.0),
]


def absent_from_a_plain_install() -> list[str]:
    """The packages here that a plain install would not bring."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    plain = closure({canonicalize_name(Requirement(text).name) for text in listed}) | {"deepcache-bench"}
    return [
        module
        for module, names in packages_distributions().items()
        if not {canonicalize_name(name) for name in names} & plain
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands read."""
    folder = tmp_path_factory.mktemp("packages")
    (folder / "results.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries(PLOTTED)))
    (folder / "prompts.txt").write_text("a red coat\n")
    (folder / "images").mkdir()
    for number in range(4):
        Image.fromarray(np.full((32, 32, 3), 40 * number, np.uint8)).save(folder / "images" / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def answers(folder: Path) -> list[Answer]:
    """Return what the README's example answered, then the first commands, and then each case."""
    (example, *_) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    given = json.dumps([[command.split() for command in FIRST], CASES, absent_from_a_plain_install(), example])
    done = subprocess.run([sys.executable, "-c", RUN, given], cwd=folder, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_first_example_of_the_readme_runs_twice_on_what_a_plain_install_brings(
    answers: list[Answer], folder: Path
) -> None:
    assert {"torchvision", "DeepCache", "pandas", "open_clip", "accelerate"} <= {*absent_from_a_plain_install()}
    code, out, said = answers[0]
    assert code == 0, said
    assert len(out.splitlines()) == 4
    assert (folder / "sneaker.png").is_file()


@pytest.mark.parametrize("number", range(len(FIRST)), ids=[command.split()[0] for command in FIRST])
def test_first_commands_run_on_what_a_plain_install_brings(number: int, answers: list[Answer]) -> None:
    code, out, said = answers[1 + number]
    assert code == 0, said
    assert out


@pytest.mark.parametrize("case", range(len(CASES)), ids=[f"{package} for {' '.join(c)}" for package, _, c in CASES])
def test_package_that_is_missing_is_one_line_that_says_what_to_install(case: int, answers: list[Answer]) -> None:
    package, install, _ = CASES[case]
    code, _, said = answers[1 + len(FIRST) + case]
    assert code == 2, said
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "needs" in line
    assert package in line
    assert line.endswith(install)
