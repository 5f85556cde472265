"""Pictures in records, and plots of records (exact laws)."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from PIL import Image

from deepcache.errors import DeepCacheError
from deepcache.results import figures
from deepcache.results.figures import picture, write
from deepcache.results.layout import Layout
from deepcache.results.record import Record, from_entries
from tests.examples import SETTINGS, TABLE1, table1_record


def speed(label: str, curve: str, speedup: float, psnr: float) -> Record:
    metrics = {"speedup": speedup, "psnr_median_db": psnr}
    key = {"method": "uniform", "row": label}
    return Record(TABLE1, key, {**SETTINGS, "curve": curve}, metrics, {"torch": "0"}, "passed", label=label)


def record(**fields):
    return Record(**{"table": Layout("table1"), "key": {"method": "uncached"}, "settings": {}, "metrics": {}, **fields})


def test_a_picture_goes_into_a_record_and_out_to_a_file(tmp_path):
    image = Image.new("RGB", (3, 2), (10, 20, 30))
    (found,) = from_entries([record(pictures=[picture("dot", "a dot", image)]).as_dict()])
    with Image.open(write(found.pictures[0], tmp_path)) as dot:
        assert (dot.size, dot.getpixel((2, 1))) == ((3, 2), (10, 20, 30))


def test_a_picture_without_alternative_text_is_refused():
    with pytest.raises(TypeError, match="expected name, alt and data in a picture"):
        record(pictures=[{"name": "dot", "data": ""}])


def test_a_picture_stays_in_its_folder(tmp_path):
    named = picture("../../out", "", Image.new("RGB", (1, 1)))
    assert write(named, tmp_path).parent == tmp_path


def test_a_picture_that_is_none_is_one_clear_line(tmp_path):
    with pytest.raises(DeepCacheError, match="cannot write the picture"):
        write({"name": "dot", "alt": "", "data": "data:image/png;base64,%%%"}, tmp_path)


def test_a_plot_names_curves_and_points_and_follows_the_pages_colours():
    records = [speed("a", "one", 1.5, 40.0), speed("b", "one", 2.5, 30.0), speed("c", "two", 2.0, 38.0)]
    found = ElementTree.fromstring(figures.svg(TABLE1, records))
    assert found.get("role") == "img"
    assert "one: 2 points from (1.5, 40) to (2.5, 30); two: 1 point" in found.attrib["aria-label"]
    assert [title.text for title in found.iter("title")] == ["a: 1.5, 40", "b: 2.5, 30", "c: 2, 38"]
    assert {"one", "two", "speedup"} <= {text.text for text in found.iter("text")}
    text = figures.svg(TABLE1, records)
    assert {"var(--curve-0)", "var(--curve-1)", "var(--rule)", "currentColor"} <= set(
        re.findall(r"var\(.*?\)|currentColor", text)
    )
    assert not re.search(r"#[0-9a-fA-F]{6}\b", text)
    assert text == figures.svg(TABLE1, records)


def test_a_row_without_both_metrics_is_no_point_and_one_point_is_no_plot():
    records = [speed("a", "one", 1.5, 40.0), table1_record("uncached", speedup=1.0)]
    assert figures.curves(TABLE1, records) == {"one": [(1.5, 40.0, "a")]}
    assert figures.svg(TABLE1, records) == ""
