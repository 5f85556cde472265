"""Garments are read from IDX files and painted (exact laws, on made-up files)."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
import torch

from bench.training import fashion
from deepcache.errors import DeepCacheError
from deepcache.models.captions import subjects


@pytest.fixture
def folder(tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(5, 28, 28), dtype=np.uint8)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(
        np.array([0x0803, 5, 28, 28], ">u4").tobytes() + pixels.tobytes()
    )
    with gzip.open(tmp_path / "train-labels-idx1-ubyte.gz", "wb") as file:
        file.write(np.array([0x0801, 5], ">u4").tobytes() + bytes([3, 1, 4, 1, 5]))
    return tmp_path, pixels


def test_idx_files_are_read_plain_and_gzipped(folder):
    found = fashion.load("train", folder[0])
    np.testing.assert_array_equal(found.grey.numpy(), folder[1])
    assert found.garment.tolist() == [3, 1, 4, 1, 5]


def test_a_missing_file_names_the_package_to_install(folder):
    with pytest.raises(DeepCacheError, match=r"t10k-images.*dataset-fashion-mnist"):
        fashion.load("test", folder[0])


@pytest.mark.parametrize("content", [b"", b"\0" * 16, b"\x1f\x8b\x08\x00", b"labels", None])
@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte.gz"])
def test_what_is_no_idx_file_is_one_line(folder, file, content):
    path = folder[0] / file
    path.write_bytes(path.read_bytes()[:-5] if content is None else content)
    with pytest.raises(DeepCacheError, match="expected an IDX file") as caught:
        fashion.load("train", folder[0])
    assert "\n" not in str(caught.value)


def test_a_garment_that_there_is_not_is_one_line(folder):
    with gzip.open(folder[0] / "train-labels-idx1-ubyte.gz", "wb") as file:
        file.write(np.array([0x0801, 5], ">u4").tobytes() + bytes([3, 1, 4, 1, 10]))
    with pytest.raises(DeepCacheError, match="a garment in 0"):
        fashion.load("train", folder[0])


def test_background_shows_where_there_is_no_garment_and_colour_where_it_is_bright():
    grey = torch.zeros(64, 28, 28, dtype=torch.uint8)
    grey[:, 10:18, 10:18] = 255
    painted = fashion.paint(fashion.Garments(grey, torch.zeros(64, dtype=torch.int64)), seed=0)
    palette = fashion.PALETTE * 2 - 1
    torch.testing.assert_close(painted.images[:, :, 0, 0], palette[painted.background])
    torch.testing.assert_close(painted.images[:, :, 16, 16], palette[painted.colour])
    assert (painted.colour != painted.background).all()
    assert painted.images.shape == (64, 3, 32, 32)


def test_painting_depends_on_the_seed_alone():
    garments = fashion.Garments(torch.zeros(9, 28, 28, dtype=torch.uint8), torch.zeros(9, dtype=torch.int64))
    assert torch.equal(fashion.paint(garments, seed=1).images, fashion.paint(garments, seed=1).images)
    assert not torch.equal(fashion.paint(garments, seed=1).images, fashion.paint(garments, seed=2).images)


def test_the_subjects_of_paintings_are_what_was_painted():
    garments = fashion.Garments(torch.full((200, 28, 28), 255, dtype=torch.uint8), torch.arange(200) % 10)
    painted = fashion.paint(garments, seed=0)
    found = fashion.subjects_of(painted)
    palette = fashion.PALETTE * 2 - 1
    for subject, image in zip(found, painted.images, strict=True):
        torch.testing.assert_close(image[:, 16, 16], palette[subject.colour])
        torch.testing.assert_close(image[:, 0, 0], palette[subject.background])
    assert [subject.garment for subject in found] == garments.garment.tolist()
    assert set(found) <= set(subjects())
