"""Images come back from stores, folders and arrays as they were saved (exact laws); what is broken is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deepcache.errors import DeepCacheError
from deepcache.metrics.image_sets import image_set
from deepcache.sampling.store import Store
from tests.stores import MANIFEST, make, manifest

PIXELS = np.random.default_rng(0).integers(0, 256, (11, 6, 4, 3), dtype=np.uint8)


def whole(path: Path, size: int) -> torch.Tensor:
    return torch.cat(list(image_set(path).split(size)))


def expected(pixels: np.ndarray = PIXELS) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


def folder(path: Path) -> Path:
    path.mkdir()
    for number, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(path / f"{number:03d}.png")
    return path


@pytest.mark.parametrize("size", [1, 4, 11, 50])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_array_is_read_as_it_was_saved(tmp_path, size, save):
    save(tmp_path / "a.npz", PIXELS)
    assert len(image_set(tmp_path / "a.npz")) == 11
    assert torch.equal(whole(tmp_path / "a.npz", size), expected())


@pytest.mark.parametrize("size", [3, 50])
def test_a_folder_is_read_in_the_order_of_its_names(tmp_path, size):
    assert torch.equal(whole(folder(tmp_path / "images"), size), expected())


def test_numbers_in_names_count_by_their_size(tmp_path):
    for number in (10, 2, 1):
        Image.fromarray(PIXELS[number]).save(tmp_path / f"{number}.png")
    assert torch.equal(whole(tmp_path, 5), expected(PIXELS[[1, 2, 10]]))


def test_a_store_is_read_in_the_order_of_its_seeds(tmp_path):
    Store.create(tmp_path, MANIFEST).fill(range(3, 16), make)
    assert torch.equal(whole(tmp_path, 5), expected(make(range(3, 16))))


def refusal(path: Path) -> str:
    with pytest.raises(DeepCacheError) as caught:
        list(image_set(path).split(4))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_samples_of_random_weights_are_refused(tmp_path):
    Store.create(tmp_path, manifest(weights="random sha256:00")).fill(range(4), make)
    assert "got those of random ones" in refusal(tmp_path)


def test_an_empty_folder_is_refused(tmp_path):
    assert "has none" in refusal(tmp_path)


def test_images_of_two_sizes_are_refused_by_name(tmp_path):
    path = folder(tmp_path / "images")
    Image.fromarray(PIXELS[0][:3]).save(path / "007.png")
    assert "4 x 6 as 000.png" in refusal(path)
    assert "007.png is 4 x 3" in refusal(path)


def test_a_broken_image_is_refused_by_name(tmp_path):
    path = folder(tmp_path / "images")
    (path / "004.png").write_bytes((path / "004.png").read_bytes()[:40])
    assert "004.png" in refusal(path)


def test_a_truncated_array_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", PIXELS)
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:200])
    assert "truncated or something else" in refusal(tmp_path / "a.npz")


def test_an_archive_without_images_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", mu=np.zeros(3))
    assert "expected images as arr_0" in refusal(tmp_path / "a.npz")


@pytest.mark.parametrize("pixels", [PIXELS.astype(np.float32), PIXELS[..., :1], PIXELS[0], PIXELS[:0]])
def test_arrays_that_are_no_images_are_refused(tmp_path, pixels):
    np.savez(tmp_path / "a.npz", pixels)
    assert "uint8 (B, H, W, 3)" in refusal(tmp_path / "a.npz")


def test_a_missing_path_is_refused(tmp_path):
    assert "got none" in refusal(tmp_path / "nothing")
