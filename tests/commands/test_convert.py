"""`convert` writes a folder that loads to the same pipeline bit for bit, or nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from deepcache import DeepCacheError, models
from deepcache.__main__ import main
from deepcache.models.class_conditional import ClassConditionalPipeline
from deepcache.models.loading import save
from tests import compvis


@pytest.fixture
def arguments(tmp_path) -> list[str]:
    found = compvis.config(scale_factor=0.7)
    checkpoint, config = compvis.written(tmp_path, found, compvis.checkpoint(found))
    return ["convert", str(checkpoint), "--config", str(config), "--out", str(tmp_path / "deep" / "out")]


def mistake(capsys, arguments: list[str]) -> str:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def plain(config: Any) -> dict[str, Any]:
    """A configuration as a file holds it, without notes on its origin."""
    return json.loads(json.dumps({key: value for key, value in config.items() if not key.startswith("_")}))


def test_the_folder_loads_to_the_same_pipeline_bit_for_bit(arguments, tmp_path, capsys):
    folder = tmp_path / "deep" / "out"
    folder.mkdir(parents=True)  # an empty one is free
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"written: {folder}\n"
    assert [path.name for path in folder.parent.iterdir()] == ["out"]
    expected, found = models.load_ldm(arguments[1], arguments[3]), models.load(folder)
    assert type(found) is ClassConditionalPipeline
    for part in ("unet", "vqvae", "class_embedder"):
        ours, theirs = getattr(found, part), getattr(expected, part)
        assert plain(ours.config) == plain(theirs.config)
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    images = [pipe([1, 2], 3, latents=latents, output_type="pt").images for pipe in (found, expected)]
    assert torch.equal(*images)


def test_a_folder_that_holds_something_is_left_alone(arguments, tmp_path, capsys):
    folder = tmp_path / "deep" / "out"
    folder.mkdir(parents=True)
    (folder / "mine").write_text("x")
    assert "pass another --out" in mistake(capsys, arguments)
    assert [path.name for path in folder.iterdir()] == ["mine"]
    (folder / "mine").unlink()
    folder.rmdir()
    folder.write_text("a file")
    assert "pass another --out" in mistake(capsys, arguments)
    assert folder.read_text() == "a file"


@pytest.mark.parametrize("config", [[], ["--config", "none.yaml"]])
def test_a_checkpoint_that_does_not_load_writes_nothing(arguments, tmp_path, capsys, config):
    mistake(capsys, [*arguments[:2], *config, *arguments[4:]])
    assert not (tmp_path / "deep").exists()


def test_a_full_disk_is_one_line_and_leaves_nothing(arguments, tmp_path, capsys, monkeypatch):
    def full(_, folder, **__):
        folder.mkdir()
        (folder / "half").write_text("x")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ClassConditionalPipeline, "save_pretrained", full)
    assert "No space left on device" in mistake(capsys, arguments)
    assert list((tmp_path / "deep").iterdir()) == []


def test_where_no_folder_can_be_made_is_one_line(tmp_path, arguments, capsys):
    (tmp_path / "deep").write_text("a file")
    assert "expected to write" in mistake(capsys, arguments)


def test_a_place_that_was_taken_meanwhile_is_not_overwritten(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(DeepCacheError, match="free"):
        save(None, tmp_path / "out")
