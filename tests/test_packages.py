"""A package that is not installed is one line that names it, wherever it is needed (an exact law)."""

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

from tests.examples import RECORDS, entries

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
    ("matplotlib", BENCH, (*TUNE, "--psnr-db", "40")),
    *((package, BENCH, ("tables", "results.jsonl")) for package in ("pandas", "tabulate")),
    *((package, BENCH, ("report", "results.jsonl")) for package in ("pandas", "jinja2", "matplotlib")),
]
RUN = """
import contextlib, io, json, os, sys, traceback


def answer(package, command):
    sys.modules[package] = None
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            from deepcache.__main__ import main
            return main(command), said.getvalue()
    except BaseException:
        return None, traceback.format_exc()


from deepcache.search import tuner# what the cases share
from diffusers import StableDiffusionPipeline

for package, _, command in json.loads(sys.argv[1]):
    read, write = os.pipe()
    if not os.fork():
        os.write(write, json.dumps(answer(package, command)).encode())
        os._exit(0)
    os.close(write)
    print(open(read).read())
    os.wait()
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[list[object]]:
    """The exit status and the standard error of each case."""
    folder = tmp_path_factory.mktemp("packages")
    (folder / "results.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries(RECORDS)))
    (folder / "prompts.txt").write_text("a red coat\n")
    (folder / "images").mkdir()
    for number in range(4):
        Image.fromarray(np.full((32, 32, 3), 40 * number, np.uint8)).save(folder / "images" / f"{number}.png")
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(CASES)], cwd=folder, capture_output=True, text=True, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("case", range(len(CASES)), ids=[f"{package} for {' '.join(c)}" for package, _, c in CASES])
def test_package_that_is_missing_is_one_line_that_says_what_to_install(case: int, answers: list[list[object]]) -> None:
    package, install, _ = CASES[case]
    code, said = answers[case]
    assert code == 2, said
    (line,) = [line for line in str(said).splitlines() if line.startswith("error: ")]
    assert "needs" in line
    assert package in line
    assert line.endswith(install)


def closure(names: set[str]) -> set[str]:
    """Distributions and all that they require, without extras."""
    found: set[str] = set()
    while names:
        found |= names
        asked = [Requirement(text) for name in names for text in _requires(name)]
        needed = [each for each in asked if each.marker is None or each.marker.evaluate({"extra": ""})]
        names = {canonicalize_name(each.name) for each in needed} - found
    return found


def _requires(name: str) -> list[str]:
    try:
        return requires(name) or []
    except PackageNotFoundError:  # torch's own, in builds for the CPU
        return []


def test_first_example_of_the_readme_runs_twice_on_what_a_plain_install_brings(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    listed = tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]
    plain = closure({canonicalize_name(Requirement(text).name) for text in listed})
    absent = [
        module
        for module, names in packages_distributions().items()
        if not {canonicalize_name(name) for name in names} & (plain | {"deepcache-bench"})
    ]
    assert {"torchvision", "matplotlib", "pandas", "open_clip", "accelerate"} <= set(absent)
    (example, *_) = re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(), re.DOTALL)
    program = f"import sys\nsys.modules |= dict.fromkeys({absent!r})\n" + "exec(EXAMPLE, {})\n" * 2
    done = subprocess.run(
        [sys.executable, "-c", program.replace("EXAMPLE", repr(example))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 4
    assert (tmp_path / "sneaker.png").is_file()
