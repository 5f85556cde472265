"""One table over all experiments, and pictures in records (exact laws)."""

from __future__ import annotations

import pytest
from PIL import Image

from deepcache.errors import DeepCacheError
from deepcache.results.overview import overview, to_markdown
from deepcache.results.picture import picture, write
from deepcache.results.record import Record, from_dict


def record(**fields):
    return Record(**{"experiment": "table1", "row": "uncached", "settings": {}, "metrics": {}, **fields})


def test_the_overview_has_a_line_a_record_and_a_dash_for_what_there_is_not():
    table = overview([record(settings={"branch": 2}, metrics={"macs": 5, "fid": 1.5}), record(experiment="table2")])
    assert table["experiment"].tolist() == ["table1", "table2"]
    cells = [[cell.strip() for cell in line.split("|")] for line in to_markdown(table).splitlines() if "table" in line]
    assert cells[0][1:4] == ["table1", "uncached", "unknown"]
    assert {"2", "5", "1.5"} <= set(cells[0])
    assert set(cells[1][4:-1]) == {"-"}


def test_a_picture_goes_into_a_record_and_out_to_a_file(tmp_path):
    image = Image.new("RGB", (3, 2), (10, 20, 30))
    kept = from_dict(record(pictures=[picture("dot", "a dot", image)]).as_dict()).pictures[0]
    with Image.open(write(kept, tmp_path)) as found:
        assert (found.size, found.getpixel((2, 1))) == ((3, 2), (10, 20, 30))


def test_a_picture_without_alternative_text_is_refused():
    with pytest.raises(TypeError, match="expected name, alt and data in a picture"):
        record(pictures=[{"name": "dot", "data": ""}])


def test_a_picture_stays_in_its_folder(tmp_path):
    named = picture("../../out", "", Image.new("RGB", (1, 1)))
    assert write(named, tmp_path).parent == tmp_path


def test_a_picture_that_is_none_is_one_clear_line(tmp_path):
    with pytest.raises(DeepCacheError, match="cannot write the picture"):
        write({"name": "dot", "alt": "", "data": "data:image/png;base64,%%%"}, tmp_path)
