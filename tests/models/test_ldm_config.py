"""Weights and configurations that are no latent diffusion of CompVis' are refused in one line."""

from __future__ import annotations

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from deepcache import DeepCacheError
from deepcache.models import checkpoint as checkpoints
from deepcache.models import load_ldm
from deepcache.models.ldm import ldm_pipeline
from deepcache.models.ldm_config import read_config
from tests import compvis


@pytest.fixture(scope="module")
def found() -> compvis.Config:
    return compvis.config()


@pytest.fixture(scope="module")
def state(found) -> dict[str, Tensor]:
    return compvis.checkpoint(found)


def refusal(*arguments: Any) -> str:
    with pytest.raises(DeepCacheError) as caught:
        load_ldm(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refused(folder: Path, config: compvis.Config) -> str:
    """The refusal of a configuration, which needs no weights."""
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(DeepCacheError) as caught:
        ldm_pipeline({}, "nowhere", read_config(folder / "config.yaml"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (lambda s: s.pop("model.diffusion_model.middle_block.1.norm.bias"), r"1 missing \(the first: the unet's mid_"),
        (lambda s: s.pop("first_stage_model.quantize.embedding.weight"), r"the vqvae's quantize\.embedding\.weight"),
        (lambda s: s.pop("cond_stage_model.embedding.weight"), r"the class_embedder's embedding\.weight"),
        (
            lambda s: s.update({"model.diffusion_model.input_blocks.1.7.weight": torch.zeros(3)}),
            r"1 unexpected \(the first: model\.diffusion_model\.input_blocks\.1\.7\.weight\)",
        ),
        (
            lambda s: s.update({"first_stage_model.encoder.down.0.attn.0.q.weight": torch.zeros(3)}),
            r"unexpected \(the first: first_stage_model\.encoder\.down\.0\.attn\.0\.q\.weight\)",
        ),
        (
            lambda s: s.update({"model.diffusion_model.out.2.bias": torch.zeros(9)}),
            r"1 of another shape \(the first: model\.diffusion_model\.out\.2\.bias: \(9,\) for \(4,\)\)",
        ),
        (lambda s: s.update(alphas_cumprod=s["alphas_cumprod"] * 0.99), "expected the noise schedule of"),
    ],
)
def test_weights_of_another_architecture_are_one_line(tmp_path, found, state, changed, told):
    other = dict(state)
    changed(other)
    assert re.search(told, refusal(*compvis.written(tmp_path, found, other)))


@pytest.mark.parametrize(
    "unet", [{"attention_resolutions": [4]}, {"attention_resolutions": [4, 2, 1]}, {"channel_mult": [1, 2]}]
)
def test_a_configuration_of_another_architecture_is_one_line(tmp_path, state, unet):
    assert "pass the checkpoint's own YAML" in refusal(*compvis.written(tmp_path, compvis.config(unet), state))


def test_without_its_yaml_another_checkpoint_is_one_line(tmp_path, found, state):
    assert "expected the weights of cin256-v2's configuration" in refusal(
        compvis.written(tmp_path, found, state)[0], None
    )


NEEDED = [
    "timesteps",
    "linear_start",
    "image_size",
    "unet_config",
    "unet_config.target",
    *(
        f"unet_config.params.{key}"
        for key in compvis.UNET
        if key not in ("use_spatial_transformer", "transformer_depth")
    ),
    "first_stage_config.params.embed_dim",
    "first_stage_config.params.n_embed",
    *(f"first_stage_config.params.ddconfig.{key}" for key in compvis.AUTOENCODER if key not in ("double_z", "dropout")),
    "cond_stage_config.params.n_classes",
]


@pytest.mark.parametrize("name", NEEDED)
def test_a_field_that_is_missing_or_wrong_is_told_by_name(tmp_path, found, name):
    *above, last = name.split(".")
    for remove in (True, False):
        other = deepcopy(found)
        fields = other["model"]["params"]
        for key in above:
            fields = fields[key]
        if remove:
            del fields[last]
        else:
            fields[last] = "wrong"
        assert f"model.params.{name}" in refused(tmp_path, other)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"conditioning_key": "concat"}, "expected 'crossattn' for model.params.conditioning_key"),
        ({"beta_schedule": "cosine"}, "expected 'linear'"),
        ({"parameterization": "z"}, "expected 'eps' or 'x0' or 'v'"),
        ({"unet": {"use_scale_shift_norm": True}}, "expected False"),
        ({"unet": {"use_spatial_transformer": False}}, "expected True"),
        ({"unet": {"use_spatial_transformer": None}}, "expected True"),  # as CompVis' code takes it, null is False
        ({"unet": {"resblock_updown": True}}, "expected False"),
        ({"autoencoder": {"double_z": True}}, "expected False"),
        (
            {"first_stage_config": {"target": "ldm.models.autoencoder.AutoencoderKL"}},
            "expected a class VQModelInterface",
        ),
        (
            {"cond_stage_config": {"target": "ldm.modules.encoders.modules.BERTEmbedder"}},
            "expected a class ClassEmbedder",
        ),
    ],
)
def test_what_cannot_be_represented_is_refused_by_name(tmp_path, changes, told):
    assert told in refused(tmp_path, compvis.config(**changes))


@pytest.mark.parametrize("text", ["model: [", "7", "model: {}", "model: {params: 3}", ""])
def test_a_yaml_that_is_none_of_compvis_is_one_line(tmp_path, found, state, text):
    checkpoint, config = compvis.written(tmp_path, found, state)
    config.write_text(text)
    assert "expected CompVis' YAML in" in refusal(checkpoint, config)
    config.unlink()
    assert "expected CompVis' YAML in" in refusal(checkpoint, config)


@pytest.mark.parametrize(
    ("unet", "told"),
    [
        ({"num_res_blocks": 1_000_000}, "of at most 1,000 layers"),
        ({"transformer_depth": 1_000_000}, "of at most 1,000 layers"),
        ({"num_res_blocks": 10**9}, "at most 1,000,000 for model.params.unet_config.params.num_res_blocks"),
        ({"channel_mult": [1] * 1_000}, "a list of at most 64"),
        ({"transformer_depth": "deep"}, "expected a whole number"),
        ({"num_heads": "9" * 10_000}, "expected a whole number"),
    ],
)
def test_numbers_that_no_model_has_are_one_short_line_at_once(tmp_path, monkeypatch, unet, told):
    monkeypatch.setattr(checkpoints, "MOST_MODULES", 1_000)
    said = refused(tmp_path, compvis.config(unet=unet))
    assert told in said
    assert len(said) < 800


def test_an_aliased_yaml_of_gigabytes_is_one_line(tmp_path, found, state):
    checkpoint, config = compvis.written(tmp_path, found, state)
    bomb = ["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))]
    config.write_text("\n".join(["model:", "  params: &p", "    linear_start: *p", *bomb]))
    assert "has an alias" in refusal(checkpoint, config)


@pytest.mark.parametrize("factor", [torch.zeros(2), torch.tensor(float("nan")), torch.tensor(-1.0), torch.tensor(1j)])
def test_a_scale_that_is_no_number_is_one_line(tmp_path, found, state, factor):
    assert "expected scale_factor" in refusal(*compvis.written(tmp_path, found, {**state, "scale_factor": factor}))


def test_what_is_no_path_is_one_line():
    assert "expected a checkpoint and therefore a path, got None" in refusal(None)
    assert "expected CompVis' YAML and therefore a path, got 3" in refusal("x.ckpt", 3)
