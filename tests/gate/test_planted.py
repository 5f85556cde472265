"""The committed baseline and records: the honest run passes, and each planted regression has its exit code (exact)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.gate import planted
from deepcache.__main__ import main
from deepcache.errors import DeepCacheError
from deepcache.results.gate import gate
from deepcache.results.record import from_entries, read

BENCH = Path(planted.__file__).parents[1]
BASELINE, RECORDS = BENCH / "baselines/mini.json", BENCH / "results/bench/records.jsonl"
HONEST = [json.loads(line) for line in RECORDS.read_text().splitlines()]
PLANTED = {name: (code, entries) for name, code, entries in planted.planted(HONEST)}


@pytest.fixture(scope="module")
def baseline():
    return read(BASELINE)


def test_the_committed_records_pass_the_committed_baseline(capsys):
    assert main(["gate", str(BASELINE), str(RECORDS)]) == 0
    num_records = sum("layout" not in entry for entry in HONEST)
    assert f"{num_records} records compared, 0 regressions" in capsys.readouterr().out


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_regression_is_caught(baseline, name):
    code, entries = PLANTED[name]
    try:
        verdict = gate(baseline, from_entries(entries))
    except DeepCacheError:
        assert code == planted.OTHERWISE
        return
    assert verdict.exit_code == code
    assert verdict.regressions if code == planted.WORSE else verdict.incomparable
    if name == "one destroyed seed of each row (psnr_db)":
        assert str(verdict).count("seeds fall by more than 3 dB") == 283
