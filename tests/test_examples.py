"""The code of the documentation runs as it stands there, and the gate that it describes passes and bites."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from deepcache.__main__ import main, parser

ROOT = Path(__file__).parents[1]
PAGES = sorted(path for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")])
# Fewer seeds for the same acts
QUICKER = {"speedup=2, num_steps=20": "speedup=2, num_steps=4, seeds=range(12), branches=[0], orders=[0]"}


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.DOTALL)


def test_every_block_of_python_can_be_read():
    found = [(path.name, block) for path in PAGES for block in blocks(path, "python")]
    assert len(found) > 6
    for name, block in found:
        compile(block, name, "exec")


def test_every_command_is_one_of_ours():
    found = [
        (path.name, command)
        for path in PAGES
        for command in re.findall(r"^(?:\$ )?python -m deepcache (.+)$", path.read_text(), re.MULTILINE)
        if "..." not in command
    ]
    assert len(found) > 20
    for name, command in found:
        words = shlex.split(command, comments=True)
        assert parser().parse_args(words).run, f"{name}: {command}"


def test_the_quickstart_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in blocks(ROOT / "docs" / "quickstart.md", "python"):
        for slow, quick in QUICKER.items():
            block = block.replace(slow, quick)
        exec(block, {})
    assert (tmp_path / "plan.json").is_file()


def test_the_gate_of_the_page_passes_and_notices_another_plan(pytester):
    (code,) = blocks(ROOT / "docs" / "gate.md", "python")
    (workflow,) = blocks(ROOT / "docs" / "gate.md", "yaml")
    steps = yaml.safe_load(workflow)["jobs"]["gate"]["steps"]
    (command,) = [step["run"].split() for step in steps if step.get("run", "").startswith("pytest")]
    test = pytester.path / command[1]
    test.parent.mkdir()
    # times of a busy machine are no matter of this test
    test.write_text(re.sub(r' *"speedup": statistics.*\n', "", code).replace("range(3)", "range(1)"))
    assert pytester.runpytest_inprocess(command[1], "--benchmark-json", "results.json").ret == 0
    assert main(["gate", "--update", "baseline.json", "results.json"]) == 0
    assert pytester.runpytest_inprocess(*command[1:]).ret == 0
    assert (pytester.path / "report.html").is_file()
    test.write_text(test.read_text().replace("deepcache.Interval(2)", "deepcache.Interval(3)"))
    worse = pytester.runpytest_inprocess(*command[1:])
    assert worse.ret == pytest.ExitCode.TESTS_FAILED
    worse.stdout.fnmatch_lines(["*regression: release*"])
