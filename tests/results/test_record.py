"""Records: plain scalars, one schema, files that a crash cannot spoil."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepcache.errors import DeepCacheError
from deepcache.results.record import Record, from_entries, layout_entry, read
from deepcache.results.tables import render
from tests.examples import RECORDS, TABLE1, entries


def lines(records) -> str:
    return "".join(json.dumps(entry) + "\n" for entry in entries(records))


def test_records_and_their_layouts_come_back_from_their_dictionaries():
    assert from_entries(json.loads(json.dumps(entries(RECORDS)))) == RECORDS


def test_a_label_is_made_from_the_key_where_none_is_given():
    assert Record(TABLE1, {"method": "uniform", "interval": 3, "branch": None}, {}, {}).label == "uniform, interval 3"
    assert Record(TABLE1, {}, {}, {}).label == "table1"


def test_a_record_knows_the_libraries_it_was_made_with():
    assert {"torch", "diffusers", "python", "machine"} <= Record(
        TABLE1, {"method": "uncached"}, {}, {}
    ).environment.keys()


@pytest.mark.parametrize("value", [np.float64(1.0), [1], {"a": 1}, np.int64(3)])
def test_a_record_refuses_what_is_no_plain_scalar(value):
    with pytest.raises(TypeError, match=r"expected a plain scalar in metrics\['fid'\]"):
        Record(TABLE1, {"method": "uncached"}, {}, {"fid": value})


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
    path.write_text(json.dumps({"benchmarks": [], "deepcache": entries(RECORDS)}, indent=4))
    assert read(path) == RECORDS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{\n    "benchmarks": [', "which is no JSON"),
        ('{\n    "benchmarks": []\n}', "holds no records"),
        ("", "holds no records"),
        ('{"deepcache": null}', "holds no records"),
        ('{"schema": 2, "table": "a", "key": {}, "settings": {}, "metrics": {"fid": NaN}}', "holds something"),
        (
            '{"schema": 1, "experiment": "a", "row": "b"}\n',
            "expected records of schema 2, got schema 1; run the benches",
        ),
        ('{"schema": 2, "layout": {"name": "a"}}\n', "holds no records"),
        ('{"schema": 2, "colour": "red"}\n', "holds something that is no record"),
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


LAYOUT, GOOD = entries(RECORDS[1:2])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**25), 10**25) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from([*GOOD, "colour"]), JSON)
@settings(max_examples=100, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_record_with_a_field_of_any_value_is_read_or_refused_in_one_line(tmp_path, field, value):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"deepcache": [LAYOUT, {**GOOD, field: value}]}))
    try:
        (found,) = read(path)
    except DeepCacheError as error:
        refusal = str(error)
    else:
        assert from_entries([layout_entry(found.table), found.as_dict()]) == [found]
        if found.table.columns:
            render([found], tmp_path / "tables")
        return
    assert "\n" not in refusal
    assert len(refusal) < 1000 + len(str(path))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("table", 1), ("table", None), ("table", "../a"), ("table", {}), ("label", ["a"]), ("outcome", None),
        ("key", None), ("key", []), ("key", {"interval": [3]}), ("key", {"interval": math.nan}), ("outcome", 3),
        ("settings", []), ("settings", {"a": {}}), ("metrics", None), ("metrics", {"fid": [1]}),
        ("metrics", {"speedup": "fast"}), ("metrics", {"speedup": 0}), ("metrics", {"speedup": True}),
        ("metrics", {"shallow_share": -0.1}), ("metrics", {"macs": -1}), ("settings", {"num_full": "many"}),
        ("metrics", {"fid": 10**400}), ("metrics", {"fid": math.inf}), ("metrics", {"fid": math.nan}),
        ("per_seed", [1]), ("per_seed", {"psnr_db": 1}), ("per_seed", {"psnr_db": ["1"]}),
        ("per_seed", {"psnr_db": [math.nan]}), ("per_seed", {"psnr_db": [True]}), ("per_seed", {"psnr_db": [None]}),
        ("pictures", [{}]), ("pictures", ["a"]), ("pictures", [{"name": 1, "alt": "", "data": ""}]),
        ("environment", "here"), ("schema", True), ("schema", [1]), ("colour", "red"),
    ],
)  # fmt: skip
def test_a_field_of_another_type_is_one_clear_line(tmp_path, field, value):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"deepcache": [LAYOUT, {**GOOD, field: value}]}))
    with pytest.raises(DeepCacheError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(path))


LAID_OUT = LAYOUT["layout"]


@given(st.sampled_from([*LAID_OUT, "colour"]), JSON)
@settings(max_examples=100, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_layout_with_a_field_of_any_value_is_read_or_refused_in_one_line(tmp_path, field, value):
    path = tmp_path / "results.json"
    layout = {**LAYOUT, "layout": {**LAID_OUT, field: value}}
    path.write_text(json.dumps({"deepcache": [layout, GOOD]}))
    try:
        (found,) = read(path)
    except DeepCacheError as error:
        refusal = str(error)
    else:
        if found.table.columns:
            render([found], tmp_path / "tables")
        return
    assert "\n" not in refusal
    assert len(refusal) < 1000 + len(str(path))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "../table1"), ("name", ""), ("name", "a" * 200), ("title", 3), ("columns", [{"metric": "fid"}]),
        ("columns", [{"metric": "fid", "title": "FID", "digits": 10**9}]), ("colour", "red"), ("number", "first"),
        ("columns", [{"metric": "fid", "title": "FID", "digits": 2, "scale": 0}]), ("published", [{"key": {}}]),
        ("columns", 2 * [{"metric": "fid", "title": "FID", "digits": 2}]), ("plot", {"x": "fid"}),
        ("columns", [{"metric": "fid", "title": "source", "digits": 2}]), ("published", [{"label": "nothing"}]),
        ("published", [{"key": {"a": 1}, "values": {"fid": "low"}, "label": ""}]),
    ],
)  # fmt: skip
def test_a_layout_of_another_form_is_one_clear_line(tmp_path, field, value):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"deepcache": [{**LAYOUT, "layout": {**LAID_OUT, field: value}}, GOOD]}))
    with pytest.raises(DeepCacheError, match="expected the layout of a table") as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(path))


def test_of_two_layouts_of_one_name_the_first_counts(tmp_path):
    path = tmp_path / "results.json"
    other = {**LAYOUT, "layout": {"name": "table1"}}
    path.write_text(json.dumps({"deepcache": [GOOD, LAYOUT, other]}))
    assert read(path)[0].table == TABLE1


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 20_000 + b"]" * 20_000,
        b'{"a":' * 20_000,
        b"9" * 5_000,
        b"\xff\xfe",
        b"\x00",
        b'{"schema": 2}\n' + b"[" * 9_999 + b"\n",
    ],
)
def test_a_file_that_is_deep_or_long_or_in_another_encoding_is_one_clear_line(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(DeepCacheError) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_a_line_separator_within_a_text_does_not_end_a_line(tmp_path):
    path = tmp_path / "records.jsonl"
    entry = {**GOOD, "label": "a\u2028b\x85c"}
    path.write_text(2 * (json.dumps(entry, ensure_ascii=False) + "\n"))
    assert [record.label for record in read(path)] == [entry["label"]] * 2


def test_a_file_names_no_libraries_that_it_does_not_hold(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps({name: value for name, value in GOOD.items() if name != "environment"}) + "\n")
    assert read(path)[0].environment == {}
