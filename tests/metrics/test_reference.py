"""References from files: the ADM suite's, our own and images give what their images give (exact laws)."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from bench.training.mini_features import save_reference
from deepcache.__main__ import main
from deepcache.errors import DeepCacheError
from deepcache.metrics import reference as references
from deepcache.metrics.extractors import MiniExtractor
from deepcache.metrics.images import Images, image_set
from deepcache.metrics.statistics import Features, Statistics

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
MINI = ["--extractor", "mini-features"]


@pytest.fixture(scope="module")
def extractor() -> MiniExtractor:
    return MiniExtractor.load()


@pytest.fixture
def features() -> Features:
    rng = np.random.default_rng(0)
    return Features(rng.normal(size=(100, 6)), rng.normal(size=(100, 8)), rng.dirichlet(np.ones(10), size=100))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    np.savez(tmp_path / "images.npz", PIXELS)
    return tmp_path / "images.npz"


def measured(extractor: MiniExtractor) -> Callable[[Images], Statistics]:
    def statistics(images: Images) -> Statistics:
        return Statistics.of(map(extractor, images.split(10)))

    return statistics


def test_saved_statistics_are_those_of_the_images(images, tmp_path, extractor):
    found = measured(extractor)(image_set(images))
    references.save_npz(found, tmp_path / "saved.npz")
    again = references.find(tmp_path / "saved.npz", lambda _: pytest.fail("there are no images"))
    direct = references.find(images, measured(extractor))
    for ours, theirs in ((again, direct), (again, references.from_statistics(found))):
        np.testing.assert_array_equal(ours.pooled.covariance, theirs.pooled.covariance)
        np.testing.assert_array_equal(ours.spatial.mean, theirs.spatial.mean)
        np.testing.assert_array_equal(ours.features, theirs.features)


def test_moments_of_an_adm_reference_win_over_those_of_its_images(images, extractor):
    """They are of the whole data set, the images a sample of it."""
    own = references.find(images, measured(extractor))
    size = own.pooled.mean.size
    moments = {"mu": np.full(size, 2.0), "sigma": np.eye(size)}
    spatial = {"mu_s": own.spatial.mean, "sigma_s": own.spatial.covariance}
    np.savez(images, PIXELS, **moments, **spatial)
    found = references.find(images, measured(extractor))
    np.testing.assert_array_equal(found.pooled.mean, np.full(size, 2.0))
    np.testing.assert_array_equal(found.spatial.mean, own.spatial.mean)
    np.testing.assert_array_equal(found.features, own.features)


def test_moments_alone_measure_fid_alone(tmp_path, extractor):
    np.savez(tmp_path / "a.npz", mu=np.zeros(128), sigma=np.eye(128))
    found = references.find(tmp_path / "a.npz", measured(extractor))
    assert (found.spatial, found.features, found.manifold) == (None, None, None)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"other": np.zeros(3)}, "expected mu and sigma, or images as arr_0"),
        ({"mu": np.zeros(3)}, "sigma is missing"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, r"expected mu \(D,\) and sigma \(D, D\)"),
        ({"mu": np.full(3, np.nan), "sigma": np.eye(3)}, "expected finite numbers as mu"),
        ({"mu": np.zeros(3), "sigma": np.full((3, 3), np.inf)}, "expected finite numbers as sigma"),
        ({"mu": np.full(3, 1e300), "sigma": np.eye(3)}, "expected finite numbers as mu"),
        ({"mu": np.zeros(3), "sigma": np.eye(3) * 1j}, "expected real numbers as sigma"),
        ({"mu": np.array(["a"]), "sigma": np.eye(1)}, "expected real numbers as mu"),
        ({"mu": np.array([None]), "sigma": np.eye(1)}, "truncated or something else"),
        ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, r"expected mu \(D,\)"),
        ({"mu": np.zeros(()), "sigma": np.eye(1)}, r"expected mu \(D,\)"),
        ({"mu": np.zeros(3), "sigma": -np.eye(3)}, "a negative eigenvalue"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 2], [2, 1]])}, "a negative eigenvalue"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 0.5], [0, 1]])}, "not symmetric"),
        ({"mu": np.zeros(3), "sigma": np.eye(3), "mu_s": np.zeros(2)}, "sigma_s is missing"),
        ({"mu": np.zeros(3), "sigma": np.eye(3), "features": np.zeros((9, 4))}, r"expected features \(M, 3\)"),
        ({"mu": np.zeros(3), "sigma": np.eye(3), "features": np.zeros(9)}, r"expected features \(M, 3\)"),
        ({"mu": np.zeros(3), "sigma": np.eye(3), "features": np.full((9, 3), np.nan)}, "finite numbers as features"),
        ({"mu": np.zeros(3), "sigma": np.eye(3)}, "features of one length, got 128 and 3"),
    ],
)
def test_references_that_are_none_are_one_line_and_exit_code_2(images, tmp_path, capsys, arrays, said):
    np.savez(tmp_path / "reference.npz", **arrays)
    assert main(["metrics", str(images), "--reference", str(tmp_path / "reference.npz"), *MINI]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert re.search(said, shown.err)


def test_a_truncated_reference_is_one_line(images, tmp_path, capsys):
    np.savez(tmp_path / "reference.npz", mu=np.zeros(128), sigma=np.eye(128))
    whole = (tmp_path / "reference.npz").read_bytes()
    (tmp_path / "reference.npz").write_bytes(whole[: len(whole) // 2])
    assert main(["metrics", str(images), "--reference", str(tmp_path / "reference.npz"), *MINI]) == 2
    assert "truncated or something else" in capsys.readouterr().err


@pytest.mark.parametrize("features", [1, 3, 50])
def test_covariances_of_features_are_taken_however_few_there_are(features):
    """Their smallest eigenvalues are 0 up to rounding."""
    for dtype in (np.float64, np.float32):
        covariance = np.cov(RNG.normal(size=(features + 1, 30)), rowvar=False).astype(dtype)
        stored = {"mu": np.zeros(30), "sigma": covariance}
        assert references._moments(Path("a.npz"), stored, "mu", "sigma") is not None


def npy(header: str, values: bytes = b"") -> bytes:
    length = len(header) + 1
    return b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little") + header.encode() + b"\n" + values


def zipped(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)


SIGMA = npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1, 1), }", np.ones(1).tobytes())
IMAGES = npy("{'descr': '|u1', 'fortran_order': False, 'shape': (4, 1, 1, 3), }", bytes(12))


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }", "8 bytes"),
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }", "8 bytes"),
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (1,)", "truncated or something else"),
        ("[" * 9_000, "truncated or something else"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (1" + "0" * 5000 + ", 1, 1, 3), }", "something else"),
    ],
)
@pytest.mark.parametrize("name", ["mu", "arr_0"])
def test_a_header_that_promises_more_than_there_is_is_refused_before_anything_is_read(tmp_path, header, said, name):
    path = tmp_path / "a.npz"
    zipped(path, {name: npy(header, bytes(8)), "sigma": SIGMA})
    with pytest.raises(DeepCacheError, match=said):
        references.find(path, lambda _: pytest.fail("nothing is measured"))


def test_images_of_too_many_pixels_are_refused_before_they_are_read(tmp_path):
    side = 6_000
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': (1, {side}, {side}, 3), }}"
    zipped(tmp_path / "a.npz", {"arr_0": npy(header, bytes(3 * side**2))}, zipfile.ZIP_DEFLATED)
    assert (tmp_path / "a.npz").stat().st_size < 200_000
    with pytest.raises(DeepCacheError, match="pixels"):
        image_set(tmp_path / "a.npz")


@pytest.mark.parametrize("members", [{"mu": SIGMA, "sigma": SIGMA}, {"arr_0": IMAGES}])
def test_archives_that_numpy_did_not_write_are_refused_by_what_they_are(tmp_path, members, extractor):
    path = tmp_path / "a.npz"
    for compression in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        zipped(path, members, compression)
        with pytest.raises(DeepCacheError, match="compressed in another way"):
            references.find(path, measured(extractor))
    zipped(path, members)
    whole = bytearray(path.read_bytes())
    for mark, flags in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):  # how far behind these marks a member's flags are
        for found in re.finditer(mark, bytes(whole)):
            whole[found.start() + flags] |= 1
    path.write_bytes(whole)
    with pytest.raises(DeepCacheError, match="encrypted"):
        references.find(path, measured(extractor))


@pytest.mark.parametrize("members", [{"mu": SIGMA, "sigma": SIGMA}, {"arr_0": IMAGES}])
def test_a_damaged_member_is_one_line(tmp_path, members, extractor):
    zipped(tmp_path / "a.npz", members)
    whole = bytearray((tmp_path / "a.npz").read_bytes())
    whole[whole.index(b"}\n") + 3] ^= 1  # the first value; the checksum tells
    (tmp_path / "a.npz").write_bytes(whole)
    with pytest.raises(DeepCacheError, match="truncated or something else"):
        references.find(tmp_path / "a.npz", measured(extractor))


@pytest.mark.parametrize(
    "change",
    [
        {"pooled.mean": None},
        {"features": None},
        {"features": np.zeros((9, 4), np.float16)},
        {"pooled.covariance": -np.eye(3, dtype=np.float32)},
        {"spatial.mean": np.full(2, np.nan, np.float32)},
    ],
)
def test_our_own_references_are_checked_as_any_other(tmp_path, change):
    path = tmp_path / "a.safetensors"
    tensors: dict[str, np.ndarray] = {"pooled.mean": np.zeros(3), "pooled.covariance": np.eye(3)}
    tensors["features"] = np.zeros((9, 3), np.float16)
    tensors |= {"spatial.mean": np.zeros(2), "spatial.covariance": np.eye(2)}
    save_file({name: value.astype(np.float32) for name, value in tensors.items()}, path)
    assert references.load(path).features.shape == (9, 3)
    kept = {name: value for name, value in (tensors | change).items() if value is not None}
    save_file(kept, path)
    with pytest.raises(DeepCacheError, match="expected"):
        references.load(path)
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(DeepCacheError, match="truncated or something else"):
        references.load(path)


def test_a_saved_reference_comes_back(features, tmp_path):
    before = Statistics.of([features])
    save_reference(before, tmp_path / "reference.safetensors")
    after = references.load(tmp_path / "reference.safetensors")
    # moments are kept in float32, features in float16
    np.testing.assert_allclose(after.pooled.covariance, before.pooled.moments().covariance, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(after.spatial.mean, before.spatial.mean, rtol=1e-6)
    np.testing.assert_allclose(after.features, before.features, rtol=1e-3, atol=1e-7)


def test_a_missing_reference_is_one_clear_line(tmp_path):
    with pytest.raises(DeepCacheError, match=r"expected the reference statistics .* which is missing"):
        references.load(tmp_path / "none.safetensors")
