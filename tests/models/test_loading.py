"""A name or a folder loads with the dtype and on the device asked for; broken folders are refused in one line."""

from __future__ import annotations

import json
import shutil

import diffusers
import pytest
import torch
from diffusers.utils import DummyObject
from diffusers.utils.import_utils import BACKENDS_MAPPING
from safetensors.torch import load_file, save_file
from torch import nn

from deepcache import DeepCacheError, models
from deepcache.__main__ import main
from deepcache.models import checkpoint
from deepcache.models.embedded import WEIGHTS


def refusal(name, **options) -> str:
    with pytest.raises(DeepCacheError) as caught:
        models.load(name, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def dtypes(pipe) -> set[torch.dtype]:
    parts = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    return {weight.dtype for part in parts for weight in part.parameters()}


@pytest.mark.parametrize("name", ["mini-ldm", "mini-ddpm", "mini-bk-tiny"])
def test_the_networks_have_the_dtype_that_was_asked_for(name):
    assert dtypes(models.load(name)) == {torch.float32}
    assert dtypes(models.load(name, dtype=torch.bfloat16)) == {torch.bfloat16}
    assert models.load(name, device="meta").unet.device.type == "meta"


def test_a_folder_loads_as_its_name_does():
    ours, theirs = models.load(WEIGHTS / "mini-ldm"), models.load("mini-ldm")
    assert all(torch.equal(a, b) for a, b in zip(ours.unet.parameters(), theirs.unet.parameters(), strict=True))


@pytest.mark.parametrize("is_half", [True, False])
def test_whole_weights_are_taken_where_there_are_both(tmp_path, is_half):
    shutil.copytree(WEIGHTS / "mini-ddpm", tmp_path / "x")
    if not is_half:
        models.load("mini-ddpm").save_pretrained(tmp_path / "x")
        for half in (tmp_path / "x").rglob("*.fp16.safetensors"):
            half.write_bytes(b"not read")
    assert dtypes(models.load(tmp_path / "x")) == {torch.float32}


@pytest.mark.parametrize("device", ["nowhere", "cuda:99"])
def test_a_device_that_is_not_there_is_one_line(device):
    assert f"expected a device of this machine, got '{device}'" in refusal("mini-ddpm", device=device)


@pytest.mark.parametrize("index", [{"_class_name": "X"}, {"_class_name": "DDPMPipeline", "unet": ["diffusers", "X"]}])
def test_a_class_for_which_diffusers_lacks_a_package_is_one_line(tmp_path, monkeypatch, index):
    """diffusers puts such a dummy in the place of every pipeline of prompts where transformers is not installed."""
    monkeypatch.setattr(diffusers, "X", DummyObject("X", (), {"_backends": ["torch", "absent"]}), raising=False)
    monkeypatch.setitem(BACKENDS_MAPPING, "absent", (lambda: False, "no such package"))
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert refusal(tmp_path) == "X needs absent, which is not installed; pip install absent"


def test_weights_are_trained_or_random():
    assert "expected weights 'trained' or 'random', got 'no'" in refusal("mini-ddpm", weights="no")


@pytest.mark.parametrize(
    ("index", "told"),
    [
        (None, "expected a diffusers configuration in"),
        ({}, "expected a pipeline of diffusers in"),
        ({"_class_name": "UNet2DModel"}, "got 'UNet2DModel'"),
        ({"_class_name": ["mine", "Pipeline"]}, "expected a pipeline of diffusers in"),
        ({"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}, "truncated or something else"),
        ({"_class_name": "DDPMPipeline", "unet": ["mine", "UNet"], "scheduler": ["mine", "S"]}, "something else"),
    ],
)
def test_a_folder_that_is_no_pipeline_is_one_line(tmp_path, index, told):
    if index is not None:
        (tmp_path / "model_index.json").write_text(json.dumps(index))
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Pipeline: ...\n")
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass UNet: ...\n")
    assert told in refusal(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_truncated_weights_in_a_folder_are_one_line(tmp_path):
    shutil.copytree(WEIGHTS / "mini-ddpm", tmp_path / "x")
    (path,) = (tmp_path / "x" / "unet").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:1000])
    assert "truncated" in refusal(tmp_path / "x")


@pytest.mark.parametrize(("part", "name"), [("unet", "mini-ddpm"), ("text_encoder", "mini-sd"), ("vae", "mini-sd")])
def test_a_folder_whose_weights_are_not_all_there_is_one_line(tmp_path, part, name):
    shutil.copytree(WEIGHTS / name, tmp_path / "x")
    (path,) = (tmp_path / "x" / part).glob("*.safetensors")
    state = load_file(path)
    del state[sorted(state)[3]]
    save_file(state, path, metadata={"format": "pt"})
    assert "got 1 missing (the first: " in refusal(tmp_path / "x")


def changed(folder, file, **values):
    """Copy mini-ddpm's folder and change values in one of its files."""
    shutil.copytree(WEIGHTS / "mini-ddpm", folder)
    found = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**found, **values}))
    return folder


@pytest.mark.parametrize(
    ("file", "values", "told"),
    [
        ("unet/config.json", {"layers_per_block": 1_000_000}, "of at most 10,000 layers"),
        ("unet/config.json", {"layers_per_block": 10**30}, "more than 20 digits"),
        ("unet/config.json", {"norm_num_groups": 0}, "expected"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**12}, "num_train_timesteps in 1..100000"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": "1000"}, "num_train_timesteps in 1..100000"),
        ("model_index.json", {"unet": ["diffusers", ["UNet2DModel"]]}, "attribute name must be string"),
        ("model_index.json", {"_class_name": None}, "expected a pipeline of diffusers"),
    ],
)
def test_a_folder_whose_numbers_no_model_has_is_one_line_at_once(tmp_path, file, values, told):
    said = refusal(changed(tmp_path / "x", file, **values))
    assert told in said
    assert len(said) < 800


def test_costs_of_a_billion_layers_are_one_line_at_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(checkpoint, "MOST_MODULES", 1_000)
    folder = changed(tmp_path / "x", "unet/config.json", layers_per_block=10**9)
    for command in (["macs"], ["explain", "--interval", "3"]):
        assert main([*command, "--model", str(folder)]) == 2
        assert "of at most 1,000 layers" in capsys.readouterr().err


def test_a_folder_without_a_sample_size_is_one_line(tmp_path, capsys):
    folder = changed(tmp_path / "x", "unet/config.json", sample_size=None)
    words = ["--num-steps", "2", "--scheduler", "ddim", "--device", "cpu"]
    for command in (
        ["sample", "--seeds", "0:1", "--plan", "uncached", "--out", str(tmp_path / "out"), *words],
        ["macs"],
        ["explain", "--interval", "3"],
        ["tune", "--speedup", "2", "--out", str(tmp_path / "plan.json"), *words],
    ):
        assert main([*command, "--model", str(folder)]) == 2
        *_, said = capsys.readouterr().err.splitlines()  # bars of diffusers may stand before it
        assert said.startswith("error: ")
        assert "no sample_size" in said


@pytest.mark.parametrize(
    "command",
    [
        ["sample", "--seeds", "0:1", "--plan", "uncached", "--out", "out", "--model", "mini-ddpm"],
        ["tune", "--speedup", "2", "--model", "mini-ddpm"],
        ["metrics", str(WEIGHTS), "--extractor", "mini-features"],
    ],
)
def test_a_device_without_values_is_one_line_at_the_command_line(command, capsys):
    assert main([*command, "--device", "meta"]) == 2
    assert "expected a device of this machine, got 'meta'" in capsys.readouterr().err


def test_a_name_that_is_too_long_for_a_file_is_one_line():
    assert "expected a model out of" in refusal("x" * 5_000)


def test_a_missing_file_is_not_taken_for_a_hub_id():
    assert "expected a model out of" in refusal("folder/model.ckpt")


def test_costs_of_a_folder_without_a_unet_are_one_line(tmp_path, capsys):
    assert main(["macs", "--model", str(tmp_path)]) == 2
    assert f"expected the config.json of a U-Net in {tmp_path}" in capsys.readouterr().err


def test_hidden_copies_beside_the_weights_are_not_read(tmp_path):
    folder = changed(tmp_path / "x", "model_index.json")
    for name in ("._diffusion_pytorch_model.safetensors", ".DS_Store"):
        (folder / "unet" / name).write_bytes(b"no weights")
    assert dtypes(models.load(folder)) == {torch.float32}
