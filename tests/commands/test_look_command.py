"""`try` leaves one page that needs no other file, for models of every kind (closed lists, embedded models)."""

from __future__ import annotations

import json
import re

import pytest

from deepcache import models
from deepcache.__main__ import main
from deepcache.models.architectures import architecture
from tests.test_main import mistake

PLANS = ["uncached", "reuse", "predicted", "idle steps"]


def tried(capsys, tmp_path, *arguments: str) -> tuple[dict, str]:
    assert main(["try", *arguments, "--num-images", "2", "--out", str(tmp_path / "page.html"), "--json"]) == 0
    return json.loads(capsys.readouterr().out), (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("model", ["mini-ddpm", "mini-ldm"])
def test_a_page_shows_every_way_with_the_figures_that_are_printed(capsys, tmp_path, model):
    found, page = tried(capsys, tmp_path, model, "--num-steps", "6")
    assert [way["name"] for way in found["ways"][:-1]] == PLANS
    assert found["ways"][-1]["name"].endswith(" steps")
    assert page.count('<img src="data:image/png;base64,') == 2 * len(found["ways"])
    assert all(f"{way['psnr_median_db']:.1f}" in page for way in found["ways"][1:])
    assert found["advice"].replace("'", "&#39;") in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)


def test_prompts_of_a_file_stand_above_the_images_and_are_data(capsys, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red <script>coat</script>\na blue bag\n")
    found, page = tried(capsys, tmp_path, "mini-sd", "--num-steps", "6", "--prompts", str(tmp_path / "prompts.txt"))
    assert "a red &lt;script&gt;coat&lt;/script&gt; (seed 0)" in page
    assert "a blue bag (seed 1)" in page
    assert f"try mini-sd --num-images 2 --out {tmp_path}" not in page  # the command is the one that was given
    assert f"--prompts {tmp_path}/prompts.txt" in page
    assert [len(way["perceptual"]) for way in found["ways"]] == [2] * len(found["ways"])


def test_the_recommended_plan_is_tried_where_there_is_one(capsys, tmp_path):
    found, page = tried(capsys, tmp_path, "mini-ldm", "--num-steps", "20")
    assert [way["name"] for way in found["ways"][:-1]] == [*PLANS, "recommended"]
    cost = architecture("mini-ldm").cost()
    assert found["ways"][-2]["share"] == pytest.approx(1 / cost.ratio(models.recommended("mini-ldm", "ddim", 20)))
    assert "deepcache.models.recommended(&#34;mini-ldm&#34;, &#34;ddim&#34;, 20, 1.5)" in page


def test_a_recommended_plan_that_costs_more_than_reuse_is_not_tried(capsys, tmp_path):
    found, _ = tried(capsys, tmp_path, "mini-ldm", "--num-steps", "20", "--interval", "10")
    assert [way["name"] for way in found["ways"][:-1]] == PLANS


def test_a_folder_is_sampled_as_its_pipeline_says(capsys, tmp_path):
    from deepcache.models.loading import save
    from tests.problems import pipeline

    save(pipeline(), tmp_path / "own")
    found, page = tried(capsys, tmp_path, str(tmp_path / "own"), "--num-steps", "6")
    assert found["solver"] == "DDIMScheduler, 6 steps"
    assert found["guidance"] == "the pipeline's own"
    assert found["perceptual distance"] == "not measured"
    assert "perceptual</th>" not in page


def test_a_model_that_is_not_there_is_one_line(capsys):
    assert "expected" in mistake(capsys, "try", "no-such-model")


def test_a_plan_of_the_package_is_not_looked_for_beside_a_folder(capsys, tmp_path):
    """A path that is joined to a folder replaces it: the file beside the user's model must not be taken for a plan."""
    from deepcache.models.loading import save
    from tests.problems import pipeline

    save(pipeline(), tmp_path / "own")
    (tmp_path / "own-None-6.json").write_text("no plan")
    (tmp_path / "own-ddim-6.json").write_text("no plan")
    found, _ = tried(capsys, tmp_path, str(tmp_path / "own"), "--num-steps", "6", "--scheduler", "ddim")
    assert [way["name"] for way in found["ways"][:-1]] == PLANS
