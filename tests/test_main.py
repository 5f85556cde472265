"""The command line: figures, files, and one clear line with exit code 2 for a mistake."""

from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from deepcache import uniform
from deepcache.__main__ import clock, main, parser
from deepcache.costs.explain import explain
from deepcache.models.architectures import ARCHITECTURES, skeleton
from deepcache.models.embedded import WEIGHTS
from tests.examples import RECORDS, entries


def run(capsys, *arguments: str) -> str:
    assert main(list(arguments)) == 0
    return capsys.readouterr().out


def mistake(capsys, *arguments: str) -> str:
    assert main(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


COMMANDS = ["try", "explain", "macs", "tune", "convert", "sample", "metrics", "tables", "report", "gate"]


def test_without_a_command_the_commands_are_told_in_the_order_of_their_use(capsys):
    out = run(capsys)
    assert re.findall(r"^    (\w+) ", out, re.MULTILINE) == COMMANDS
    assert "python -m deepcache try mini-sd" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_has_an_example_that_parses(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    examples = re.findall(rf"^  python -m deepcache ({command} .*)$", capsys.readouterr().out, re.MULTILINE)
    assert examples
    for example in examples:
        assert parser().parse_args(shlex.split(example)).run


def test_a_terminal_sees_how_long_a_silent_command_takes(monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr("deepcache.__main__._SILENT_S", 0.0)
    with clock("explain", is_shown=True):
        while "explain: 0 s" not in terminal.getvalue() and "explain: 1 s" not in terminal.getvalue():
            time.sleep(0.01)
    with clock("explain", is_shown=False):
        pass
    assert terminal.getvalue().endswith("\r\033[K")


def test_macs_prints_table_1s_value(capsys):
    out = run(capsys, "macs", "--model", "ldm-4-g", "--branch", "0", "--interval", "5", "--num-steps", "250")
    assert "23.50 G" in out
    assert "attention products not counted" in out


def test_macs_layer_wise_shows_every_stage(capsys):
    out = run(capsys, "macs", "--model", "ddpm-cifar10", "--layer-wise")
    assert all(f"down_blocks.{b}.{r}" in out for b in range(4) for r in range(2))
    assert "mid" in out


def test_macs_for_machines_are_whole_numbers_that_add_up(capsys):
    found = json.loads(run(capsys, "macs", "--model", "ddpm-cifar10", "--interval", "2", "--json"))
    assert sum(stage["macs"] for stage in found["stages"]) == found["full"]
    assert [line["branch"] for line in found["branches"]] == list(range(-1, 12))
    assert all(isinstance(line["mean"], int) for line in found["branches"])


def test_a_folder_and_a_configuration_file_give_what_the_name_gives(capsys, tmp_path):
    known = ARCHITECTURES["ddpm-cifar10"]
    (tmp_path / "unet").mkdir()
    known.meta().save_config(tmp_path / "unet")
    expected = json.loads(run(capsys, "macs", "--model", "ddpm-cifar10", "--json"))
    for model in (tmp_path, tmp_path / "unet" / "config.json"):
        found = json.loads(run(capsys, "macs", "--model", str(model), "--json"))
        assert {**found, "model": ""} == {**expected, "model": ""}


def test_explain_prints_what_the_options_ask_for(capsys):
    options = ["--num-steps", "20", "--interval", "4", "--branch", "2", "--order", "1", "--last-step-full"]
    out = run(capsys, "explain", "--model", "ddpm-cifar10", *options)
    plan = uniform(20, 4, 2, 1, last_step_full=True)
    unet = ARCHITECTURES["ddpm-cifar10"].meta()
    assert out.rstrip("\n") == str(explain(SimpleNamespace(unet=unet), plan, name="ddpm-cifar10"))
    assert "20 steps, of which 6 are full: 0, 4, 8, 12, 16, 19\n" in out
    assert "\n>      2  " in out


def test_explain_and_macs_know_idle_steps(capsys):
    out = run(capsys, "explain", "--model", "ddpm-cifar10", "--interval", "4", "--num-steps", "20", "--branch", "-1")
    plan, unet = uniform(20, 4, -1), ARCHITECTURES["ddpm-cifar10"].meta()
    assert out.rstrip("\n") == str(explain(SimpleNamespace(unet=unet), plan, name="ddpm-cifar10"))
    assert "\n>     -1  no stage runs " in out
    assert f"{20 / 5:.2f}" in out.splitlines()[-1]  # the bound is T / K
    asked = ["macs", "--model", "ddpm-cifar10", "--interval", "4", "--num-steps", "20", "--branch", "-1", "--json"]
    found = json.loads(run(capsys, *asked))
    (line,) = found["branches"]
    assert (line["branch"], line["shallow"], line["num_full"], line["macs_ratio"]) == (-1, 0, 5, 4.0)


def test_explain_for_machines_tells_what_the_page_tells(capsys):
    asked = ["explain", "--model", "mini-sd", "--interval", "3", "--num-steps", "30"]
    found, page = json.loads(run(capsys, *asked, "--json")), run(capsys, *asked)
    assert found["plan"] == {"num_steps": 30, "full_steps": list(range(0, 30, 3)), "branch": 0, "order": "auto"}
    assert found["mean"] * 30 == pytest.approx(found["full"] * 10 + found["shallow"] * 20, abs=30)
    for speedup in (found["unet_bound"], *found["bound"].values()):
        assert f"{speedup:.2f}" in page
    assert {*found["parts"]} == {"text_encoder", "vae decoder"}


def test_a_reader_that_ends_early_is_no_error():
    command = [sys.executable, "-m", "deepcache"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        running.stdout.close()  # as `| head -0` does
        said = running.stderr.read()
    assert (running.returncode, said) == (0, "")


def test_explain_counts_the_decoder_of_the_embedded_model(capsys):
    out = run(capsys, "explain", "--model", "mini-ldm", "--interval", "3")
    assert "50 steps, of which 17 are full" in out
    assert "vqvae decoder" in out


def test_a_diffusers_folder_is_explained_as_the_name_is(capsys, tmp_path):
    networks, _ = skeleton("bk-sdm-tiny")  # the smallest with three networks
    index = {"_class_name": "StableDiffusionPipeline", "safety_checker": [None, None]}
    for name, library in (("unet", "diffusers"), ("vae", "diffusers"), ("text_encoder", "transformers")):
        network = getattr(networks, name)
        index[name] = [library, type(network).__name__]
        (network.save_config if library == "diffusers" else network.config.save_pretrained)(tmp_path / name)
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    expected = run(capsys, "explain", "--model", "bk-sdm-tiny", "--interval", "3")
    assert "text_encoder" in expected
    assert "vae decoder" in expected
    found = run(capsys, "explain", "--model", str(tmp_path), "--interval", "3")
    assert found.replace(str(tmp_path), "bk-sdm-tiny") == expected
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "vae": ["diffusers", "DDIMScheduler"]}))
    assert "DDIMScheduler is no network" in mistake(capsys, "explain", "--model", str(tmp_path), "--interval", "3")
    (tmp_path / "model_index.json").write_text("{")
    assert "is no JSON" in mistake(capsys, "explain", "--model", str(tmp_path), "--interval", "3")


def test_tables_renders_a_results_file(capsys, tmp_path):
    results = tmp_path / "records.jsonl"
    results.write_text("".join(json.dumps(entry) + "\n" for entry in entries(RECORDS)))
    out = run(capsys, "tables", str(results), "--out", str(tmp_path / "tables"))
    assert (tmp_path / "tables/table1.md").read_text() in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["macs", "--model", "ldm-5"], "expected a model out of mini-ldm"),
        (["macs", "--model", "mini-ldm", "--branch", "9"], "expected branch 0..8"),
        (["macs", "--model", "mini-ldm", "--interval", "0"], "expected interval to be a whole number of at least 1"),
        (["macs", "--model", "mini-ldm", "--num-steps", "0"], "expected num_steps to be a whole number of at least 1"),
        (["macs", "--model", str(WEIGHTS / "mini-ldm" / "vqvae")], "expected a configuration of UNet2DModel"),
        (["explain", "--model", "ldm-5", "--interval", "3"], "expected a model out of mini-ldm"),
        (["explain", "--model", "mini-ldm", "--interval", "3", "--branch", "9"], "expected branch 0..8"),
        (["explain", "--model", "mini-ldm", "--interval", "3", "--branch", "-2"], "expected branch"),
        (
            ["explain", "--model", "mini-ldm", "--interval", "3", "--order", "3"],
            "expected order to be 'auto' or one of",
        ),
        (["explain", "--model", "mini-ldm", "--interval", "0"], "expected interval to be a whole number of at least 1"),
        (["explain", "--model", "mini-ldm", "--interval", "3", "--num-steps", "0"], "expected num_steps to be a whole"),
        (["tables", "none.json"], "expected a results file"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, arguments, message):
    assert message in mistake(capsys, *arguments)


def test_a_truncated_results_file_writes_nothing(capsys, tmp_path):
    results = tmp_path / "results.json"
    results.write_text('{\n  "deepcache": [')
    assert "truncated" in mistake(capsys, "tables", str(results), "--out", str(tmp_path / "tables"))
    assert not Path(tmp_path / "tables").exists()


def test_a_missing_data_folder_is_one_line(capsys, tmp_path):
    from bench.training.__main__ import main as train

    assert train(["mini-ldm", "--data", str(tmp_path / "none"), "--runs", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "dataset-fashion-mnist" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("device", ["cuda:99", "nothing"])
def test_metrics_on_a_device_that_is_not_there_is_one_line(capsys, tmp_path, device):
    assert main(["metrics", str(tmp_path), "--extractor", "mini-features", "--device", device]) == 2
    err = capsys.readouterr().err.strip()
    assert err.count("\n") == 0
    assert "expected a device of this machine" in err


@pytest.mark.parametrize(
    ("device", "message"), [("cuda:99", "a device of this machine"), ("cuda", "a GPU for worker 9")]
)
def test_sample_on_a_device_that_is_not_there_is_one_line(capsys, tmp_path, monkeypatch, device, message):
    monkeypatch.setenv("LOCAL_RANK", "99")  # of which no machine has as many
    asked = ["sample", "--model", "mini-ddpm", "--seeds", "0:2", "--worker", "9/10", "--device", device]
    assert message in mistake(capsys, *asked, "--out", str(tmp_path / "store"))
    assert not (tmp_path / "store").exists()


def test_sample_refuses_a_branch_before_there_is_a_store(capsys, tmp_path):
    asked = ["sample", "--model", "mini-ddpm", "--plan", "uniform,interval=2,branch=99", "--seeds", "0:2"]
    assert main([*asked, "--num-steps", "2", "--out", str(tmp_path / "store")]) == 2
    assert "branch" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_sample_refuses_a_solver_that_a_pixel_pipeline_would_turn_into_noise(capsys, tmp_path):
    asked = ["sample", "--model", "mini-ddpm", "--scheduler", "heun", "--seeds", "0:2", "--num-steps", "2"]
    assert main([*asked, "--out", str(tmp_path / "store")]) == 2
    assert "scales nothing, got heun" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()
