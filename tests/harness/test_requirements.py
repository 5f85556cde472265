"""What is missing at the paper's scale is one page for the experiments that run, said before anything is loaded."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace

import pytest

from bench.harness.requirements import Needs, page
from bench.harness.scales import SCALES

ALL = Needs(("class_conditional", "pixels", "prompted", "pruned", "unpruned", "raced"), real_images=True, lpips=True)


@pytest.fixture
def missing(monkeypatch, tmp_path):
    """The page of some needs, on a machine that has nothing."""
    for name in ("DEEPCACHE_MODELS", "HF_HOME", "HF_HUB_CACHE", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "nothing"))
    monkeypatch.setattr("bench.harness.requirements.try_to_load_from_cache", lambda *_: None)
    options = {"scale": "paper", "prompts": None}
    return lambda *asked: page(asked, SimpleNamespace(getoption=options.get))


def test_all_experiments_need_every_model_of_the_scale(missing):
    shown = missing(ALL)
    for model in SCALES["paper"].models:
        assert f"  {model} (" in shown
    for other in ("captions_val2017.json", "Inception", "CLIP ViT-g/14", "AlexNet"):
        assert other in shown


@pytest.mark.parametrize(
    ("name", "named", "others"),
    [
        (
            "table1_imagenet",
            ("ldm-4-g (MIT", "VIRTUAL_imagenet256_labeled.npz", "Inception"),
            ("sd-1.5", "ddpm", "CLIP"),
        ),
        ("table2_ddpm", ("ddpm-church", "ddpm-bedroom"), ("ldm-4-g", "bk-sdm", "sd-1.5")),
        ("table3_stable_diffusion", ("bk-sdm-tiny", "sd-1.5", "captions_val2017.json"), ("ldm-4-g", "AlexNet")),
        ("vs_upstream", ("sdxl", "ddpm-bedroom"), ("ddpm-church", "real images")),
        ("diversity", ("alexnet-owt-7be5be79.pth", "sd-1.5"), ("ldm-4-g",)),
        ("workflows", ("sd-1.5",), ("ddpm", "bk-sdm")),
    ],
)
def test_the_page_names_what_an_experiment_needs_and_nothing_else(missing, name, named, others):
    shown = missing(import_module(f"bench.test_{name}").NEEDS)
    assert all(each in shown for each in named)
    assert not any(each in shown for each in others)


def test_nothing_is_said_where_nothing_is_missing(missing):
    assert missing(Needs(())) == ""


def test_a_whole_selection_is_one_page_that_names_each_file_once(missing):
    shown = missing(ALL, Needs(("prompted",)), Needs(("class_conditional",), real_images=True))
    assert shown == missing(ALL)
    assert shown.count("--scale paper needs what is not here") == 1


EXPERIMENT = """
from bench.harness.requirements import Needs

NEEDS = Needs(("PART",))

def test_NAME(workload):
    workload("unconditional")
"""


@pytest.fixture
def suite(pytester, monkeypatch, tmp_path):
    """Two experiments under the options and fixtures of bench/conftest.py, and a machine that has nothing."""
    for name in ("DEEPCACHE_MODELS", "HF_HOME", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "nothing"))
    pytester.makeconftest('pytest_plugins = ["bench.conftest"]')
    for name, part in (("pixels", "unconditional"), ("latents", "class_conditional")):
        pytester.makepyfile(**{f"test_{name}": EXPERIMENT.replace("NAME", name).replace("PART", part)})
    return pytester


def test_the_page_is_of_the_tests_that_pytest_selects(suite):
    result = suite.runpytest_inprocess("--scale", "paper", "-k", "not latents")
    assert result.ret == 2
    shown = result.stdout.str() + result.stderr.str()
    assert "ddpm-cifar10 (" in shown
    assert "ldm-4-g" not in shown
    assert "Traceback" not in shown


def test_a_model_that_no_need_names_is_refused(suite):
    result = suite.runpytest_inprocess("-k", "latents")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*expected mini-ddpm among the models of NEEDS, got the parts*class_conditional*"])


def test_a_row_without_a_threshold_is_not_judged_and_no_pass(suite):
    suite.makepyfile(
        test_judged="""
        from types import SimpleNamespace

        import pytest

        from bench.harness.requirements import Needs

        NEEDS = Needs(())

        def test_other_model(judge):
            assert not judge(SimpleNamespace(is_mini=False))

        def test_exact(judge):
            judge.has_judged = True

        def test_failed(judge):
            assert judge(SimpleNamespace(is_mini=False))

        def test_without():
            pass
        """
    )
    result = suite.runpytest_inprocess("test_judged.py")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*1 failed, 2 passed, 1 not judged*"])


def test_what_runs_by_name_alone_is_left_out_unless_named(suite):
    suite.makepyfile(
        test_alone="""
        import pytest

        from bench.harness.requirements import Needs

        NEEDS = Needs(())
        pytestmark = pytest.mark.named_alone

        def test_alone():
            pass
        """
    )
    for options, count in ((("-k", "alone"), 0), (("test_alone.py",), 1), (("-k", "alone", "--all"), 1)):
        found = suite.runpytest_inprocess(*options).parseoutcomes()
        assert found.get("passed", 0) == count
