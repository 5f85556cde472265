"""mini-sd in the layout of Stable Diffusion's single files loads to mini-sd, and nothing is downloaded."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import Tensor

from deepcache import DeepCacheError, models
from deepcache.__main__ import main
from deepcache.models.architectures import architecture
from deepcache.models.embedded import WEIGHTS
from deepcache.models.ldm import names_of
from deepcache.models.local_files import HOME
from tests import compvis

HUB_ID = "stable-diffusion-v1-5/stable-diffusion-v1-5"
LAYOUT = compvis.config(  # mini-sd's, as far as names go
    {"channel_mult": [1, 2, 2], "attention_resolutions": [1, 2], "context_dim": 96},
    {"ch_mult": [1, 2, 2], "num_res_blocks": 1, "attn_resolutions": []},
    cond_stage_config={"params": {"n_classes": 1, "embed_dim": 96}},
)


@pytest.fixture(scope="module")
def expected():
    return models.load("mini-sd")


@pytest.fixture(scope="module")
def state(expected) -> dict[str, Tensor]:
    """mini-sd's weights under CompVis' names."""
    with torch.device("meta"):
        names = compvis.layout(LAYOUT, lambda _, shape: torch.empty(*shape)).keys()
    found: dict[str, Tensor] = {}
    for part, theirs_of in (("unet", "unet"), ("vae", "vqvae")):
        network = getattr(expected, part)
        theirs = names_of(theirs_of, names, network.config)
        found |= {theirs[name]: value for name, value in network.state_dict().items()}
    text = {name.removeprefix("text_model."): value for name, value in expected.text_encoder.state_dict().items()}
    return found | {f"cond_stage_model.transformer.text_model.{name}": value for name, value in text.items()}


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch) -> Path:
    """Empty folders for the models and the hub's cache."""
    monkeypatch.setenv(HOME, str(tmp_path / "models"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def configuration(folder: Path) -> None:
    """mini-sd's folder without its weights."""
    shutil.copytree(WEIGHTS / "mini-sd", folder, ignore=shutil.ignore_patterns("*.safetensors"))


def written(place: Path, state: dict[str, Tensor]) -> Path:
    place.parent.mkdir(exist_ok=True)
    if place.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in state.items()}, place)
    else:
        torch.save({"state_dict": state}, place)
    return place


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_single_file_loads_to_what_it_was_made_of(places, expected, state, suffix):
    configuration(places / "models" / "sd-1.5")
    pipe = models.load(written(places / f"file{suffix}", state))
    assert type(pipe) is type(expected)
    for part in ("unet", "vae", "text_encoder"):
        ours, theirs = getattr(pipe, part).state_dict(), getattr(expected, part).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert pipe.safety_checker is None
    assert pipe.tokenizer("a red bag").input_ids == expected.tokenizer("a red bag").input_ids


def test_a_single_file_costs_what_its_configuration_does(places, state, capsys):
    folder, file = places / "models" / "sd-1.5", written(places / "file.ckpt", state)
    configuration(folder)
    shown = []
    for model in (folder, file):
        assert main(["explain", "--interval", "3", "--model", str(model)]) == 0
        shown.append(capsys.readouterr().out.replace(str(model), "it"))
    assert shown[0] == shown[1]
    assert architecture(str(file)) == architecture(str(folder))


def test_the_hubs_cache_tells_the_configuration_as_well(places, state):
    repository = places / "hub" / f"models--{HUB_ID.replace('/', '--')}"
    configuration(repository / "snapshots" / "1")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("1")
    assert models.load(written(places / "file.ckpt", state)).unet.config.cross_attention_dim == 96


def test_a_name_finds_its_single_file(places, state):
    written(places / "models" / "sd-1.5.safetensors", state)
    with pytest.raises(DeepCacheError, match=r"expected the configuration and tokenizer of stable-diffusion-v1-5/"):
        models.load("sd-1.5")


def test_a_name_finds_its_single_file_beside_the_folder_of_its_configuration(places, expected, state):
    """The refusal above tells the user to put the configuration there."""
    configuration(places / "models" / "sd-1.5")
    written(places / "models" / "sd-1.5.safetensors", state)
    found = models.load("sd-1.5").unet.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.unet.state_dict().items())


def test_without_its_configuration_a_single_file_is_one_line(places, state):
    with pytest.raises(DeepCacheError) as caught:
        models.load(written(places / "file.ckpt", state))
    told = str(caught.value)
    assert "\n" not in told
    assert f"`hf download {HUB_ID}" in told
    assert str(places / "models" / "sd-1.5") in told


def test_a_single_file_that_lacks_a_network_is_one_line(places, state):
    configuration(places / "models" / "sd-1.5")
    some = {name: value for name, value in state.items() if not name.startswith("cond_stage_model")}
    with pytest.raises(DeepCacheError) as caught:
        models.load(written(places / "file.ckpt", some))
    assert "\n" not in str(caught.value)
