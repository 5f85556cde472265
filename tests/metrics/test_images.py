"""Images come from stores, arrays and pictures as they were saved and as a viewer shows them; others are refused.

The tests are exact; Pillow and numpy write the files.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deepcache.errors import DeepCacheError
from deepcache.metrics.images import as_bytes, image_set, pictures_in, pixels
from deepcache.sampling.store import Store
from tests.stores import MANIFEST, make, manifest

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (11, 6, 4, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (8, 6), np.uint8)
COLOURS = RNG.integers(0, 256, (8, 6, 3), np.uint8)


def whole(path: Path, size: int) -> torch.Tensor:
    return torch.cat(list(image_set(path).split(size)))


def expected(values: np.ndarray = PIXELS) -> torch.Tensor:
    return torch.from_numpy(values).permute(0, 3, 1, 2).float() / 255


def folder(path: Path) -> Path:
    path.mkdir()
    for number, values in enumerate(PIXELS):
        Image.fromarray(values).save(path / f"{number:03d}.png")
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


def refusal(read: Callable[[Path], object], path: Path) -> str:
    with pytest.raises(DeepCacheError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refused_set(path: Path) -> str:
    return refusal(lambda place: list(image_set(place).split(4)), path)


def test_samples_of_random_weights_are_refused(tmp_path):
    Store.create(tmp_path, manifest(weights="random sha256:00")).fill(range(4), make)
    assert "got those of random ones" in refused_set(tmp_path)


def test_an_empty_folder_is_refused(tmp_path):
    assert "has none" in refused_set(tmp_path)


def test_images_of_two_sizes_are_refused_by_name(tmp_path):
    path = folder(tmp_path / "images")
    Image.fromarray(PIXELS[0][:3]).save(path / "007.png")
    assert "4 x 6 as 000.png" in refused_set(path)
    assert "007.png is 4 x 3" in refused_set(path)


def test_a_broken_image_is_refused_by_name(tmp_path):
    path = folder(tmp_path / "images")
    (path / "004.png").write_bytes((path / "004.png").read_bytes()[:40])
    assert "004.png" in refused_set(path)


def test_a_truncated_array_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", PIXELS)
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:200])
    assert "truncated or something else" in refused_set(tmp_path / "a.npz")


def test_an_archive_without_images_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", mu=np.zeros(3))
    assert "expected images as arr_0" in refused_set(tmp_path / "a.npz")


@pytest.mark.parametrize("values", [PIXELS.astype(np.float32), PIXELS[..., :1], PIXELS[0], PIXELS[:0]])
def test_arrays_that_are_no_images_are_refused(tmp_path, values):
    np.savez(tmp_path / "a.npz", values)
    assert "uint8 (B, H, W, 3)" in refused_set(tmp_path / "a.npz")


def test_a_missing_path_is_refused(tmp_path):
    assert "got none" in refused_set(tmp_path / "nothing")


def test_bytes_come_back_as_they_were():
    values = torch.arange(256).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal(as_bytes(values / 255), values.to(torch.uint8))


def grey(found: np.ndarray) -> np.ndarray:
    assert (found == found[..., :1]).all()
    return found[..., 0]


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(values: np.ndarray, kind: int) -> bytes:
    """A PNG of 16 bits a channel, by the standard: Pillow writes grey alone."""

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    start = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + start + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".bmp", ".tif", ".TIFF", ".gif", ".webp"])
def test_eight_bits_are_read_as_they_are(tmp_path, suffix):
    for mode, values in (("L", GREY), ("RGB", COLOURS)):
        if (suffix, mode) != (".gif", "RGB"):  # of 256 colours
            path = tmp_path / f"{mode}{suffix}"
            Image.fromarray(values).save(path, **{"lossless": True} if suffix == ".webp" else {})
            assert np.array_equal(pixels(path) if mode == "RGB" else grey(pixels(path)), values)
            assert path in pictures_in(tmp_path)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_sixteen_bits_of_grey_are_the_same_grey(tmp_path, suffix, dtype):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(GREY.astype(dtype) * 257).save(path)
    assert np.array_equal(grey(pixels(path)), GREY)
    every = np.arange(65536, dtype=dtype).reshape(256, 256)
    Image.fromarray(every).save(path)
    assert abs(grey(pixels(path)) / 255 - every / 65535).max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize(("kind", "channels"), [(2, 3), (4, 2), (6, 4)])  # colours, grey and colours with alpha
def test_sixteen_bits_of_colour_are_the_same_to_one_of_255(tmp_path, kind, channels):
    values = RNG.integers(0, 65536, (8, 6, channels))
    if channels != 3:
        values[..., -1] = 65535
    (tmp_path / "a.png").write_bytes(png(values, kind))
    wanted = values[..., :3] if channels > 2 else np.repeat(values[..., :1], 3, axis=2)
    assert abs(pixels(tmp_path / "a.png") / 255 - wanted / 65535).max() <= 1 / 255


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA", "RGBX", "PA"])
def test_every_mode_of_eight_bits_is_read_as_its_colours(tmp_path, mode):
    image = Image.fromarray(COLOURS).convert(mode) if mode != "PA" else Image.fromarray(COLOURS).convert("P")
    image.save(tmp_path / "a.tif" if mode == "RGBX" else tmp_path / "a.png")
    (path,) = tmp_path.iterdir()
    assert np.array_equal(pixels(path), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_what_shines_through_is_refused(tmp_path, mode):
    image = Image.fromarray(COLOURS).convert(mode)
    image.putpixel((2, 3), (*image.getpixel((2, 3))[:-1], 254))
    image.save(tmp_path / "a.png")
    assert "partly transparent" in refusal(pixels, tmp_path / "a.png")


def test_a_transparent_colour_is_refused_where_it_is_used(tmp_path):
    for number, (image, shade) in enumerate(
        [
            (Image.new("L", (4, 4), 3).convert("P"), 3),
            (Image.new("L", (4, 4), 3), 3),
            (Image.new("RGB", (4, 4)), (0, 0, 0)),
        ]
    ):
        path = tmp_path / f"{number}.png"
        image.save(path, transparency=shade)
        assert "partly transparent" in refusal(pixels, path)
        image.save(path, transparency=7 if number < 2 else (1, 2, 3))
        assert np.array_equal(pixels(path), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    ("mode", "suffix"), [("I", ".tif"), ("F", ".tif"), ("CMYK", ".jpg"), ("CMYK", ".tif"), ("LAB", ".tif")]
)
def test_values_whose_shade_is_not_known_are_refused(tmp_path, mode, suffix):
    Image.new(mode, (4, 4)).save(tmp_path / f"a{suffix}")
    assert f"mode {mode}" in refusal(pixels, tmp_path / f"a{suffix}")


def test_tiffs_whose_sixteen_bits_begin_with_white_are_refused(tmp_path):
    path = tmp_path / "a.tif"
    Image.fromarray(GREY.astype(np.uint16) * 257).save(path, tiffinfo={262: 0})
    with Image.open(path) as image:
        assert image.tag_v2[262] == 0  # type: ignore[attr-defined]
    refusal(pixels, path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_stands_upright_as_its_camera_says(tmp_path, orientation):
    """The oracle is the standard: how row 0 and column 0 of the file lie in the scene."""
    turned = {
        1: COLOURS, 2: COLOURS[:, ::-1], 3: COLOURS[::-1, ::-1], 4: COLOURS[::-1],
        5: COLOURS.swapaxes(0, 1), 6: np.rot90(COLOURS, -1), 7: COLOURS[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(COLOURS),
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(COLOURS).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(pixels(tmp_path / "a.png"), turned[orientation])


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tif"])
def test_a_moving_picture_is_refused(tmp_path, suffix):
    frames = [Image.fromarray(COLOURS), Image.fromarray(COLOURS[::-1].copy())]
    frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:])
    assert "several frames" in refusal(pixels, tmp_path / f"a{suffix}")


@pytest.mark.parametrize("side", [6_000, 12_000, 20_000])
def test_a_bomb_is_refused_before_it_is_decoded(tmp_path, side):
    start = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + start + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    assert "pixels" in refusal(pixels, tmp_path / "a.png")


def test_another_kind_under_a_pictures_name_is_not_decoded(tmp_path):
    """Pillow would give PostScript to a program."""
    for number, kind in enumerate(("EPS", "PPM", "TGA", "PDF")):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{number}.png", kind)
        assert "something else" in refusal(pixels, tmp_path / f"{number}.png")


def test_hidden_copies_are_no_pictures_of_the_folder(tmp_path):
    for place in (
        "a.png", "class/b.png", "._a.png", ".ipynb_checkpoints/a-checkpoint.png", "__MACOSX/._a.png",
        "__MACOSX/class/a.png", "class/.thumbnails/b.png", "class/@eaDir/b.png/SYNOPHOTO_THUMB_XL.jpg", ".DS_Store",
    ):  # fmt: skip
        path = tmp_path / "pictures" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(COLOURS).save(path, "PNG")
    (tmp_path / "pictures" / "notes.txt").write_text("")
    found = [path.relative_to(tmp_path / "pictures").as_posix() for path in pictures_in(tmp_path / "pictures")]
    assert found == ["a.png", "class/b.png"]
    assert len(image_set(tmp_path / "pictures")) == 2


def test_a_folder_whose_own_path_is_hidden_is_read(tmp_path):
    folder = tmp_path / ".cache" / "__MACOSX"
    folder.mkdir(parents=True)
    Image.fromarray(COLOURS).save(folder / "a.png")
    assert len(pictures_in(folder)) == 1


@pytest.mark.parametrize("name", ["b.ppm", "b.JP2", "b.avif", "b.svg"])
def test_pictures_of_a_kind_that_is_not_read_are_named(tmp_path, name):
    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    (tmp_path / name).write_bytes(b"")
    assert name in refusal(image_set, tmp_path)


def test_links_to_folders_are_followed_once_and_never_in_a_circle(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "set").mkdir()
    Image.fromarray(COLOURS).save(tmp_path / "real" / "a.png")
    (tmp_path / "set" / "class").symlink_to(tmp_path / "real")
    assert [path.name for path in pictures_in(tmp_path / "set")] == ["a.png"]
    (tmp_path / "real" / "again").symlink_to(tmp_path / "set")
    assert "links to a folder" in refusal(pictures_in, tmp_path / "real")


def test_what_is_no_file_is_refused_by_name(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing.png")
    (tmp_path / "folder.png").mkdir()
    found = pictures_in(tmp_path)
    assert {path.name for path in found} == {"pipe.png", "gone.png"}
    for path in found:
        assert f"expected an image in {path}" in refusal(pixels, path)
    assert "got none" in refusal(image_set, Path("a" * 5_000))


def test_numbers_of_any_length_in_names_are_ordered(tmp_path):
    for name in ("9" * 200, "1" + "0" * 200, "2"):
        (tmp_path / f"{name}.png").write_bytes(b"")
    assert [len(path.stem) for path in pictures_in(tmp_path)] == [1, 200, 201]
