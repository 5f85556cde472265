"""The committed baseline and records: the honest run passes, and each planted regression has its exit code (exact)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.gate import planted
from deepcache.__main__ import main

BENCH = Path(planted.__file__).parents[1]
HONEST = [json.loads(line) for line in (BENCH / "results/bench/records.jsonl").read_text().splitlines()]
NUM_RECORDS = sum("layout" not in entry for entry in HONEST)
PLANTED = {name: (code, entries) for name, code, entries in planted.planted(HONEST)}


@pytest.fixture
def exit_code(tmp_path):
    def of(entries) -> int:
        path = tmp_path / "results.json"
        path.write_text(json.dumps({"deepcache": entries}))
        return main(["gate", str(BENCH / "baselines/mini.json"), str(path)])

    return of


def test_the_committed_records_pass_the_committed_baseline(exit_code, capsys):
    assert exit_code(HONEST) == 0
    assert f"{NUM_RECORDS} records compared, 0 regressions" in capsys.readouterr().out


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_regression_is_caught(exit_code, capsys, name):
    code, entries = PLANTED[name]
    assert exit_code(entries) == code
    out, err = capsys.readouterr()
    if code == planted.WORSE:
        assert "regression: " in out
    else:
        assert "cannot be compared: " in out or err.startswith("error: ")


def test_a_destroyed_seed_of_each_row_is_a_regression_of_each_row(exit_code, capsys):
    code, entries = PLANTED["one destroyed seed of each row (psnr_db)"]
    assert exit_code(entries) == code
    assert capsys.readouterr().out.count("seeds fall by more than 3 dB") == 192
