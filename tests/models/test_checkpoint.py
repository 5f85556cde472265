"""Weights come out of untrusted files bit for bit, their code never runs, and a broken file is an error of one line."""

from __future__ import annotations

import os
import pickle
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from deepcache import DeepCacheError
from deepcache.models.checkpoint import weights

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor(7)}


class Malicious:
    """An object that writes a file when it is unpickled."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def __reduce__(self) -> Any:
        return os.system, (f"echo ran > {self.out}",)


def refusal(path: Path) -> str:
    with pytest.raises(DeepCacheError) as caught:
        weights(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.fixture
def callback(monkeypatch) -> type:
    """A class with the name of Lightning's ModelCheckpoint, in modules that exist only while the file is written."""
    kind = type("ModelCheckpoint", (), {"__module__": "pytorch_lightning.callbacks.model_checkpoint"})
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", kind.__module__):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    vars(sys.modules[kind.__module__])["ModelCheckpoint"] = kind
    return kind


@pytest.mark.parametrize(
    "wrap", [lambda t: t, lambda t: {"state_dict": t}, lambda t: {"state_dict": {"state_dict": t}}]
)
def test_tensors_come_back_from_every_wrapping(tmp_path, wrap):
    torch.save(wrap(TENSORS), tmp_path / "x.ckpt")
    found = weights(tmp_path / "x.ckpt")
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)


def test_tensors_come_back_from_safetensors_and_from_the_format_before_zip(tmp_path):
    save_file(TENSORS, tmp_path / "x.safetensors")
    torch.save(TENSORS, tmp_path / "x.ckpt", _use_new_zipfile_serialization=False)
    for path in tmp_path.iterdir():
        assert all(torch.equal(weights(path)[name], TENSORS[name]) for name in TENSORS)


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {**TENSORS, "more": x}, lambda x: {"state_dict": {"a": x}}])
def test_code_is_refused_and_nothing_of_it_runs(tmp_path, is_zip, wrap):
    mark = tmp_path / "ran"
    torch.save(wrap(Malicious(mark)), tmp_path / "x.ckpt", _use_new_zipfile_serialization=is_zip)
    told = refusal(tmp_path / "x.ckpt")
    assert "got code (posix.system), of which nothing ran" in told
    assert not mark.exists()
    torch.load(tmp_path / "x.ckpt", weights_only=False)  # test of the test: the file does carry it
    assert mark.exists()


def test_a_plain_pickle_with_code_is_refused_and_nothing_of_it_runs(tmp_path):
    (tmp_path / "x.ckpt").write_bytes(pickle.dumps(Malicious(tmp_path / "ran"), protocol=2))
    refusal(tmp_path / "x.ckpt")
    assert not (tmp_path / "ran").exists()


def test_a_trainings_callbacks_are_read_as_names_without_code(tmp_path, callback, monkeypatch):
    state = {"best_model_score": torch.tensor(0.1), "best_model_path": "x"}
    torch.save({"state_dict": TENSORS, "callbacks": {callback: state}}, tmp_path / "x.ckpt")
    monkeypatch.delitem(sys.modules, callback.__module__)
    allowed = set(torch.serialization.get_safe_globals())
    assert weights(tmp_path / "x.ckpt").keys() == TENSORS.keys()
    assert set(torch.serialization.get_safe_globals()) == allowed  # the leave does not outlive the file


def test_a_callback_with_code_of_its_own_is_not_run(tmp_path, callback):
    """The reader takes its stand-in even where the class can be imported."""
    callback.__setstate__ = lambda _, state: (tmp_path / "ran").write_text(str(state))
    held = callback()
    held.__dict__["x"] = 1
    torch.save({"state_dict": TENSORS, "callbacks": [held]}, tmp_path / "x.ckpt")
    assert weights(tmp_path / "x.ckpt").keys() == TENSORS.keys()
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "x.ckpt", weights_only=False)  # test of the test
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.6, 0.99])
@pytest.mark.parametrize("name", ["x.ckpt", "old.ckpt", "x.safetensors"])
def test_a_truncated_file_is_one_line(tmp_path, name, share):
    tensors, path = {"a": torch.zeros(1000)}, tmp_path / name
    if name == "x.safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=name == "x.ckpt")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert "which is truncated or something else" in refusal(path)


def test_a_checkpoint_that_contains_itself_is_one_line(tmp_path):
    itself: dict[str, Any] = {}
    itself["state_dict"] = {"state_dict": itself}
    torch.save(itself, tmp_path / "x.ckpt")
    assert "`state_dict` more than 8 times within itself" in refusal(tmp_path / "x.ckpt")
    found: dict[str, Any] = TENSORS
    for _ in range(8):
        found = {"state_dict": found}
    torch.save(found, tmp_path / "x.ckpt")
    assert weights(tmp_path / "x.ckpt").keys() == TENSORS.keys()


@pytest.mark.filterwarnings("ignore:.*[Ss]parse")  # torch tells that it looks at them
@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1).expand(10**12),
        torch.sparse_coo_tensor(torch.zeros(1, 1).long(), torch.ones(1), (10**12,), check_invariants=True),
        torch.empty(10**12, device="meta"),
    ],
)
def test_tensors_of_more_values_than_the_file_has_are_one_line(tmp_path, tensor):
    torch.save({"a": tensor}, tmp_path / "x.ckpt")
    assert "expected plain tensors" in refusal(tmp_path / "x.ckpt")


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_pickle_that_asks_for_gigabytes_is_one_line(tmp_path, is_zip):
    """torch calls `bytearray` for a pickle, with any length."""

    class Huge:
        def __reduce__(self) -> Any:
            return bytearray, (1 << 40,)

    torch.save({"a": Huge()}, tmp_path / "x.ckpt", _use_new_zipfile_serialization=is_zip)
    assert "it has a bytearray" in refusal(tmp_path / "x.ckpt")


def test_a_compressed_checkpoint_is_one_line(tmp_path):
    torch.save({"a": torch.zeros(1_000_000)}, tmp_path / "x.ckpt")
    with zipfile.ZipFile(tmp_path / "x.ckpt") as whole, zipfile.ZipFile(tmp_path / "y.ckpt", "w", 8) as small:
        for name in whole.namelist():
            small.writestr(name, whole.read(name))
    assert "its members are compressed" in refusal(tmp_path / "y.ckpt")


def test_what_is_no_checkpoint_is_one_line(tmp_path):
    path = tmp_path / "x.ckpt"
    assert "which is no file" in refusal(path)
    assert "which is no file" in refusal(tmp_path)
    path.write_text("hello\nworld")
    assert "something else" in refusal(path)
    for other in ([1, 2], {"epoch": 3}, torch.zeros(2), {1: torch.zeros(2)}):
        torch.save(other, path)
        assert "expected tensors by name" in refusal(path)
