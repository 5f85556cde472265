"""Published models are found in the folder of models and in the hub's cache; a missing model is one line of advice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from deepcache import DeepCacheError, models
from deepcache.__main__ import main
from deepcache.models.architectures import architecture
from deepcache.models.embedded import WEIGHTS
from deepcache.models.local_files import HOME, home, located, snapshot
from deepcache.models.registry import MODELS, PUBLISHED, Model
from deepcache.sampling.workload import by_protocol
from tests import compvis


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch) -> Path:
    """Empty folders for the models and the hub's cache."""
    monkeypatch.setenv(HOME, str(tmp_path / "models"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "models").mkdir()
    return tmp_path


def cached(places: Path, hub_id: str) -> Path:
    """The folder of a repository in the hub's cache."""
    repository = places / "hub" / f"models--{hub_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
    return repository / "snapshots" / ("0" * 40)


def small_unet() -> UNet2DModel:
    types = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DModel(sample_size=8, block_out_channels=(32, 64), **types)


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_not_here_is_one_line_with_source_licence_and_place(places, name):
    with pytest.raises(DeepCacheError) as caught:
        models.load(name)
    told = str(caught.value)
    assert "\n" not in told
    assert all(word in told for word in (name, MODELS[name].source, MODELS[name].licence, HOME))
    assert str(places / "models" / name) in told


def test_without_the_environment_variable_the_cache_is_home(monkeypatch):
    monkeypatch.setenv(HOME, "")
    assert home() == Path.home() / ".cache" / "deepcache" / "models"


@pytest.mark.parametrize("place", ["sd-1.5", "hub"])
def test_a_folder_loads_from_either_place(places, place):
    folder = places / "models" / "sd-1.5" if place == "sd-1.5" else cached(places, MODELS["sd-1.5"].source)
    shutil.copytree(WEIGHTS / "mini-sd", folder, dirs_exist_ok=True)
    found, expected = models.load("sd-1.5"), models.load("mini-sd")
    for part in ("unet", "vae", "text_encoder"):
        ours, theirs = getattr(found, part).state_dict(), getattr(expected, part).state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
        assert {value.dtype for value in ours.values() if value.is_floating_point()} == {torch.float32}


def test_a_mirror_in_the_hubs_cache_does(places):
    shutil.copytree(WEIGHTS / "mini-sd", cached(places, "stabilityai/stable-diffusion-2-1"), dirs_exist_ok=True)
    assert located(MODELS["sd-2.1"]) == snapshot("stabilityai/stable-diffusion-2-1")


def test_a_new_model_is_one_entry(places, monkeypatch):
    unet = ("diffusers", "UNet2DModel", dict(small_unet().config))
    new = Model("small", MODELS["mini-ddpm"].protocol, source="someone/small", networks={"unet": unet})
    monkeypatch.setitem(MODELS, "small", new)
    with pytest.raises(DeepCacheError, match=r"expected small .*`hf download someone/small`"):
        models.load("small")
    shutil.copytree(WEIGHTS / "mini-ddpm", cached(places, "someone/small"), dirs_exist_ok=True)
    assert isinstance(models.load("small"), DDPMPipeline)
    assert architecture("small").meta().config.block_out_channels == small_unet().config.block_out_channels
    _, sampling = by_protocol("small", models.load("small"), lambda _: {})
    assert sampling.num_steps == new.protocol.num_steps


def test_a_hub_id_loads_from_the_hubs_cache_and_is_else_one_line(places):
    shutil.copytree(WEIGHTS / "mini-ddpm", cached(places, "someone/small"), dirs_exist_ok=True)
    assert isinstance(models.load("someone/small"), DDPMPipeline)
    with pytest.raises(
        DeepCacheError, match=r"expected someone/other in the hub's cache, .*`hf download someone/other`"
    ):
        models.load("someone/other")


def test_a_hub_id_costs_what_its_folder_does_and_is_else_one_line(places, capsys):
    folder = cached(places, "someone/small")
    shutil.copytree(WEIGHTS / "mini-ddpm", folder, dirs_exist_ok=True)
    shown = []
    for model in ("someone/small", str(folder)):
        assert main(["macs", "--model", model]) == 0
        shown.append(capsys.readouterr().out.replace(model, "it"))
    assert shown[0] == shown[1]
    assert main(["macs", "--model", "someone/other"]) == 2
    assert "expected someone/other in the hub's cache" in capsys.readouterr().err


def test_an_incomplete_folder_names_what_is_missing(places):
    folder = places / "models" / "sd-1.5"
    shutil.copytree(WEIGHTS / "mini-sd", folder)
    for path in (folder / "text_encoder").glob("*.safetensors"):
        path.unlink()
    with pytest.raises(
        DeepCacheError, match=r"expected text_encoder/\*model\* in .*sd-1\.5, got no such file; fetch it"
    ):
        models.load("sd-1.5")


def test_a_flat_repository_as_googles_loads(places):
    """In google/ddpm-cifar10-32, weights stand beside the index, and attention has diffusers' former names."""
    folder, unet = places / "models" / "ddpm-cifar10", small_unet()
    unet.save_pretrained(folder)
    path = folder / "diffusion_pytorch_model.safetensors"
    renamed = {formerly(name): value for name, value in load_file(path).items()}
    assert sum(".proj_attn." in name for name in renamed) == 2
    save_file(renamed, path, metadata={"format": "pt"})
    DDPMScheduler(clip_sample=True).save_config(folder)
    index = {"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}
    (folder / "model_index.json").write_text(json.dumps({**index, "scheduler": ["diffusers", "DDPMScheduler"]}))
    found = models.load("ddpm-cifar10")
    assert all(torch.equal(a, b) for a, b in zip(found.unet.parameters(), unet.parameters(), strict=True))


def formerly(name: str) -> str:
    for now, then in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        name = name.replace(f".{now}.", f".{then}.")
    return name


@pytest.mark.parametrize("name", ["ldm-4-g.ckpt", "ldm-4-g/model.ckpt"])
def test_an_ldm_checkpoint_is_read_as_cin256_v2(places, name):
    found = compvis.config()
    checkpoint, _ = compvis.written(places, found, compvis.checkpoint(found))
    place = places / "models" / name
    place.parent.mkdir(exist_ok=True)
    shutil.copy(checkpoint, place)
    with pytest.raises(DeepCacheError, match=f"expected the weights of cin256-v2's configuration in {place}"):
        models.load("ldm-4-g")  # it is a tiny one


def test_an_ldm_folder_as_convert_writes_it_loads(places):
    found = compvis.config()
    pipe = models.load_ldm(*compvis.written(places, found, compvis.checkpoint(found)))
    pipe.save_pretrained(places / "models" / "ldm-4-g")
    loaded = models.load("ldm-4-g")
    assert all(torch.equal(a, b) for a, b in zip(loaded.unet.parameters(), pipe.unet.parameters(), strict=True))
