"""The registry: entries are complete plain data, and nothing slow is imported for them."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from deepcache.models.architectures import ARCHITECTURES, architecture
from deepcache.models.embedded import WEIGHTS
from deepcache.models.registry import EMBEDDED, MODELS, PUBLISHED
from deepcache.sampling.schedulers import SCHEDULERS

NAMES = {"ldm-4-g", "sd-1.5", "sd-2.1", "sdxl", "ddpm-cifar10", "ddpm-bedroom", "ddpm-church"} | {
    f"bk-sdm-{size}" for size in ("base", "small", "tiny")
}


def test_a_published_model_has_networks_a_source_and_a_licence():
    assert set(PUBLISHED) == NAMES
    for name in PUBLISHED:
        found = MODELS[name]
        assert found.name == name
        assert found.licence
        assert found.files
        assert found.scheduler
        assert found.source.count("/") == 1 or found.is_single_file
        with pytest.raises(dataclasses.FrozenInstanceError):
            found.name = "other"


def test_an_embedded_model_has_a_folder_and_takes_the_rest_from_its_base():
    for name in EMBEDDED:
        assert (WEIGHTS / name / "unet" / "config.json").is_file()
        assert (WEIGHTS / (MODELS[name].base or name) / "model_index.json").is_file()
    assert {MODELS[name].base for name in EMBEDDED} == {"", "mini-sd"}


def test_a_protocol_names_a_solver_and_a_branch_of_its_model():
    for name, model in MODELS.items():
        assert model.protocol.scheduler in SCHEDULERS
        num_branches = architecture(name).num_branches
        assert num_branches >= (4 if name in EMBEDDED else 6)
        assert 0 <= model.protocol.branch < num_branches


def test_models_that_share_networks_have_one_architecture():
    assert {"ddpm-lsun", *PUBLISHED} - {"ddpm-bedroom", "ddpm-church"} == set(ARCHITECTURES)
    assert architecture("ddpm-bedroom") == architecture("ddpm-church") == ARCHITECTURES["ddpm-lsun"]


def test_the_registry_is_read_without_anything_slow():
    code = "import sys, deepcache.models.registry; print({'torch', 'diffusers', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
