"""Tables: snapshots (`pytest --force-regen` makes them anew), and what is beside what."""

from __future__ import annotations

import math

import pytest

from deepcache.errors import DeepCacheError
from deepcache.results import published
from deepcache.results.beyond import PREDICTION
from deepcache.results.experiments import TABLE1, TABLE3
from deepcache.results.layouts import LAYOUTS
from deepcache.results.record import Record
from deepcache.results.tables import build, notes, render
from tests.examples import RECORDS, table1_record

PROTOCOL = {"extractor": "Inception", "num_samples": 50_000, "uncached_steps": 250, "guidance_scale": 1.5}


def test_table_beyond_the_paper_has_no_published_lines(tmp_path):
    metrics = {"macs": 4e7, "psnr_db": 27.1, "psnr_median_db": 48.7, "tipped": 1.5625, "tipped_seeds": "20"}
    record = Record("prediction", "ddim 50, N=2, order 1", {"model": "mini-ldm"}, metrics, {"torch": "0"}, "passed")
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
    mini = build(TABLE1, [table1_record("uniform N=3", speedup=2.5, fid=3.0)])
    difference = mini[mini["source"] == "difference"].iloc[0]
    assert difference["speedup"] == pytest.approx(2.5 - 2.65)
    assert difference.isna()["fid"]
    real = table1_record("uniform N=3", speedup=2.5, fid=3.0)
    real.settings["model"] = "ldm-4-g"
    assert build(TABLE1, [real]).set_index("source").isna().loc["difference", "fid"]
    real.settings.update(PROTOCOL)
    assert build(TABLE1, [real]).set_index("source").loc["difference", "fid"] == pytest.approx(3.0 - 3.44)


@pytest.mark.parametrize("other", [{"num_samples": 500}, {"uncached_steps": 50}, {"guidance_scale": 3.0}])
def test_a_score_of_another_protocol_has_no_difference(other):
    real = table1_record("uniform N=3", speedup=2.5, fid=3.0)
    real.settings.update({"model": "ldm-4-g", **PROTOCOL, **other})
    difference = build(TABLE1, [real]).set_index("source").loc["difference"]
    assert difference.isna()["fid"]
    assert not difference.isna()["speedup"]


@pytest.mark.parametrize(
    ("prompts", "num_samples", "published_score"),
    [("captions_val2017.json", 5_000, 30.24), ("PartiPrompts.tsv", 1_632, 29.51), ("mine.txt", 5_000, None)],
)
def test_a_clip_score_stands_beside_that_of_its_own_prompts(prompts, num_samples, published_score):
    """Tables 13 and 14; those of other prompts are shown beside COCO's without a difference."""
    settings = {"model": "sd-1.5", "clip": "ViT-g-14/laion2b_s34b_b88k", "uncached_steps": 50, "guidance_scale": 7.5}
    settings |= {"prompts": prompts, "num_samples": num_samples}
    record = Record("table3", "PLMS 50 steps", settings, {"clip_score": 30.0}, {"torch": "0"}, "passed")
    difference = build(TABLE3, [record]).set_index("source").loc["difference", "clip_score"]
    if published_score is None:
        assert math.isnan(difference)
    else:
        assert difference == pytest.approx(30.0 - published_score)
    assert any(("PartiPrompts" if num_samples == 1_632 else "COCO") in note for note in notes(TABLE3, [record]))


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


def test_every_layout_names_published_rows_that_exist():
    for layout in (each for one in LAYOUTS for each in (one, *one.of_prompts.values())):
        for match in layout.rows.values():
            assert published.row(**{"table": layout.published_table, **match}), match


def test_records_of_no_known_experiment_are_refused_and_nothing_is_written(tmp_path):
    record = table1_record("uncached")
    object.__setattr__(record, "experiment", "table99")
    with pytest.raises(DeepCacheError, match=r"expected records of the experiments table1, table2, .*; found table99"):
        render([record], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DeepCacheError, match=r"cannot write .* take another folder"):
        render(RECORDS, tmp_path / "file" / "tables")
