"""Tables: snapshots (`pytest --force-regen` makes them anew), and what is beside what."""

from __future__ import annotations

import pytest

from deepcache.errors import DeepCacheError
from deepcache.results.layout import Column, Layout, Published, published_row
from deepcache.results.record import Record
from deepcache.results.tables import build, by_table, notes, overview, overview_markdown, render
from tests.examples import PAPER, RECORDS, TABLE1, table1_record

PREDICTION = Layout(
    "prediction",
    columns=(
        Column("psnr_db", "PSNR of the mean error (dB)", 1),
        Column("psnr_median_db", "PSNR, median seed (dB)", 1),
        Column("tipped", "tipped seeds (%)", 1),
    ),
)


def test_table_beyond_the_paper_has_no_published_lines(tmp_path):
    metrics = {"macs": 4e7, "psnr_db": 27.1, "psnr_median_db": 48.7, "tipped": 1.5625, "tipped_seeds": "20"}
    record = Record(PREDICTION, {"interval": 2, "order": 1}, {"model": "mini-ldm"}, metrics, {"torch": "0"}, "passed")
    table = build(PREDICTION, [record])
    assert len(table) == 1
    render([record], tmp_path)
    page = (tmp_path / "prediction.md").read_text()
    assert "paper" not in page
    assert "difference" not in page
    assert {"27.1", "48.7", "1.6"} <= set(page.split())


@pytest.mark.parametrize("suffix", ["md", "csv", "tex"])
def test_table1_looks_as_it_did(tmp_path, file_regression, suffix):
    render(RECORDS, tmp_path)
    file_regression.check((tmp_path / f"table1.{suffix}").read_text(), extension=f".{suffix}")


def test_the_published_row_stands_beneath_the_measured():
    table = build(TABLE1, RECORDS)
    paper = table[(table["method"] == "uniform N=3") & (table["source"] == "paper (Inception)")].iloc[0]
    assert (paper["macs"], paper["speedup"], paper["fid"]) == (36.48, 2.65, 3.44)  # the paper's Table 1


def test_a_difference_is_shown_only_where_the_quantity_is_the_same():
    mini = build(TABLE1, [table1_record("uniform", 3, speedup=2.5, fid=3.0)])
    difference = mini[mini["source"] == "difference"].iloc[0]
    assert difference["speedup"] == pytest.approx(2.5 - 2.65)
    assert difference.isna()["fid"]
    real = table1_record("uniform", 3, speedup=2.5, fid=3.0)
    real.settings["model"] = "ldm-4-g"
    assert build(TABLE1, [real]).set_index("source").isna().loc["difference", "fid"]
    real.settings.update(PAPER)
    assert build(TABLE1, [real]).set_index("source").loc["difference", "fid"] == pytest.approx(3.0 - 3.44)


@pytest.mark.parametrize("other", [{"num_samples": 500}, {"uncached_steps": 50}, {"guidance_scale": 3.0}])
def test_a_score_of_another_protocol_has_no_difference(other):
    real = table1_record("uniform", 3, speedup=2.5, fid=3.0)
    real.settings.update({**PAPER, **other})
    difference = build(TABLE1, [real]).set_index("source").loc["difference"]
    assert difference.isna()["fid"]
    assert not difference.isna()["speedup"]


def test_the_first_published_row_that_fits_the_key_stands_beneath():
    """As Tables 13 and 14 do, of PartiPrompts and of all other prompts."""
    rows = (
        Published({"steps": 50, "prompts": "PartiPrompts.tsv"}, {"clip_score": 29.51}, "PartiPrompts"),
        Published({"steps": 50}, {"clip_score": 30.24}, "COCO"),
    )
    table = Layout("table3", columns=(Column("clip_score", "CLIP score", 2, "clip_score", same=()),), published=rows)
    for key, expected in (
        ({"steps": 50}, "COCO"),
        ({"steps": 50, "prompts": "mine.txt"}, "COCO"),
        ({"prompts": "PartiPrompts.tsv", "steps": 50, "order": 0}, "PartiPrompts"),
        ({"steps": 25}, None),
    ):
        record = Record(table, key, {}, {"clip_score": 30.0}, {}, "passed")
        assert getattr(table.beside(record.key), "label", None) == expected
        assert len(build(table, [record])) == (1 if expected is None else 3)
        assert any(f"paper: {expected}" in note for note in notes(table, [record])) == (expected is not None)


def test_a_fid_of_fewer_samples_than_features_says_so():
    record = table1_record("uncached", fid=3.0)
    for count, extractor, is_biased in (
        (40, "mini-features", True),
        (150, "mini-features", False),
        (150, "Inception", True),
    ):
        record.settings.update(num_samples=count, extractor=extractor)
        assert any(f"FID of {count} samples is mostly bias" in note for note in notes(TABLE1, [record])) == is_biased
    assert not any("bias" in note for note in notes(TABLE1, [table1_record("uncached", macs=1)]))


def test_tables_with_a_number_come_first():
    names = [Layout(name, number=number) for name, number in (("b", None), ("two", 2), ("a", None), ("one", 1))]
    shown = [layout.name for layout, _ in by_table([Record(layout, {}, {}, {}) for layout in names])]
    assert shown == ["one", "two", "b", "a"]


def test_the_paper_has_what_is_asked_for_or_says_that_it_has_not():
    assert published_row(table="Table 1", method="Uniform - N=2")["fid"] == 3.39
    with pytest.raises(LookupError, match=r"expected a row of published\.json"):
        published_row(table="Table 1", method="Uniform - N=7")


def test_records_without_a_layout_are_refused_and_nothing_is_written(tmp_path):
    record = Record(Layout("table99"), {"method": "uncached"}, {}, {"fid": 1.0})
    with pytest.raises(DeepCacheError, match=r"expected records with the layout of their table, found .* table99"):
        render([record], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_overview_has_a_line_a_record_and_a_dash_for_what_there_is_not():
    table = overview(
        [
            Record(Layout("table1"), {"method": "uncached"}, {"branch": 2}, {"macs": 5, "fid": 1.5}),
            Record(Layout("table2"), {"method": "x"}, {}, {}),
        ]
    )
    assert table["experiment"].tolist() == ["table1", "table2"]
    cells = [
        [cell.strip() for cell in line.split("|")] for line in overview_markdown(table).splitlines() if "table" in line
    ]
    assert cells[0][1:4] == ["table1", "uncached", "unknown"]
    assert {"2", "5", "1.5"} <= set(cells[0])
    assert set(cells[1][4:-1]) == {"-"}


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DeepCacheError, match=r"cannot write .* take another folder"):
        render(RECORDS, tmp_path / "file" / "tables")
