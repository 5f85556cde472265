"""Records: plain scalars, one schema, files that a crash cannot spoil."""

from __future__ import annotations

import json

import numpy as np
import pytest
from examples import RECORDS

from deepcache.errors import DeepCacheError
from deepcache.results.record import Record, from_dict, read


def lines(records) -> str:
    return "".join(json.dumps(record.as_dict()) + "\n" for record in records)


def test_a_record_comes_back_from_its_dictionary():
    for record in RECORDS:
        assert from_dict(json.loads(json.dumps(record.as_dict()))) == record


def test_a_record_knows_the_libraries_it_was_made_with():
    assert {"torch", "diffusers", "python", "machine"} <= Record("table1", "uncached", {}, {}).environment.keys()


@pytest.mark.parametrize("value", [np.float64(1.0), [1], {"a": 1}, np.int64(3)])
def test_a_record_refuses_what_is_no_plain_scalar(value):
    with pytest.raises(TypeError, match=r"expected a plain scalar in metrics\['fid'\]"):
        Record("table1", "uncached", {}, {"fid": value})


def test_json_lines_are_read_in_order(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text(lines(RECORDS))
    assert read(path) == RECORDS


def test_a_last_line_cut_off_by_a_crash_is_left_out(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text(lines(RECORDS)[:-40])
    assert read(path) == RECORDS[:-1]


def test_records_are_read_from_pytest_benchmarks_json(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"benchmarks": [], "deepcache": [r.as_dict() for r in RECORDS]}, indent=4))
    assert read(path) == RECORDS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{\n    "benchmarks": [', "which is no JSON"),
        ('{\n    "benchmarks": []\n}', "holds no records"),
        ("", "holds no records"),
        ('{"deepcache": null}', "holds no records"),
        ('{"schema": 1, "experiment": "a", "row": "b", "settings": {}, "metrics": {"fid": NaN}}', "holds something"),
        ('{"schema": 99}\n', "expected records of schema 1, got schema 99"),
        ('{"schema": 1, "colour": "red"}\n', "holds something that is no record"),
        ("[1, 2]\n", "holds something that is no record"),
        ("hello\nworld\n", "which is no JSON"),
    ],
)
def test_a_file_of_another_kind_is_one_clear_line(tmp_path, text, message):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(DeepCacheError, match=message) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_clear_line(tmp_path):
    with pytest.raises(DeepCacheError, match="expected a results file"):
        read(tmp_path / "none.json")
