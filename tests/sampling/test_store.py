"""A store has each sample once, in whole files of one manifest (exact laws on samples that tell their seed)."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch

from deepcache.errors import DeepCacheError
from deepcache.sampling.manifest import LAYOUT, Manifest
from deepcache.sampling.seeds import Worker
from deepcache.sampling.shards import Shard
from deepcache.sampling.store import Store
from tests.stores import MANIFEST, hashes, make, manifest

SEEDS = range(3, 25)


def fill(folder: Path, seeds: range = SEEDS, workers: int = 1) -> Store:
    for rank in range(workers):
        store = Store.create(folder, MANIFEST)
        store.fill(seeds, make, Worker(rank, workers))
    return store


def expected(seeds: range | list[int]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([make(range(seed, seed + 1)) for seed in seeds])).permute(0, 3, 1, 2)


@contextmanager
def one_line(match: str) -> Iterator[None]:
    with pytest.raises(DeepCacheError, match=match) as caught:
        yield
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [2, 3, 7, 30])
def test_any_number_of_workers_writes_the_same_files(tmp_path, workers):
    fill(tmp_path / "alone")
    fill(tmp_path / "many", workers=workers)
    assert hashes(tmp_path / "many") == hashes(tmp_path / "alone")


def test_shards_begin_at_multiples_of_their_size(tmp_path):
    names = sorted(hashes(fill(tmp_path, range(3, 13)).folder))
    assert names == [
        "manifest.json",
        "seeds-00000003-00000004.npz",
        "seeds-00000004-00000008.npz",
        "seeds-00000008-00000012.npz",
        "seeds-00000012-00000013.npz",
    ]


def test_a_block_that_grows_is_sampled_where_it_is_missing_alone(tmp_path):
    asked = []

    def noted(seeds: range) -> np.ndarray:
        asked.extend(seeds)
        return make(seeds)

    store = Store.create(tmp_path, MANIFEST)
    for seeds in (range(6, 10), range(13, 15), range(5, 16), range(5, 16), range(3, 6)):
        store.fill(seeds, noted)
    assert sorted(asked) == list(range(3, 16)) == store.seeds()
    assert torch.equal(store.images(range(3, 16)), expected(range(3, 16)))


def test_workers_on_different_blocks_at_once_lose_and_double_nothing(tmp_path):
    """The second worker samples a part of what the first is about to write."""
    store = Store.create(tmp_path, MANIFEST)

    def slow(seeds: range) -> np.ndarray:
        store.fill(range(5, 7), make)
        return make(seeds)

    store.fill(range(4, 9), slow)
    assert store.seeds() == list(range(4, 9))
    assert torch.equal(torch.cat(list(store.batches(3))), expected(range(4, 9)))
    assert torch.equal(store.images([6, 4, 8]), expected([6, 4, 8]))


def test_images_come_in_the_order_of_the_seeds(tmp_path):
    store = fill(tmp_path)
    for seeds in (SEEDS, [24, 3, 11, 11, 8], [7], []):
        found = store.images(seeds)
        assert found.dtype == torch.uint8
        assert found.shape == (len(seeds), 3, 2, 4)
        assert not seeds or torch.equal(found, expected(seeds))


@pytest.mark.parametrize("size", [1, 3, 100])
def test_batches_are_all_images_in_order_without_loading_all(tmp_path, size):
    store = fill(tmp_path)
    batches = list(store.batches(size))
    assert max(map(len, batches)) == min(size, 4)
    assert torch.equal(torch.cat(batches), expected(SEEDS))
    assert torch.equal(torch.cat(list(store.batches(size, [5, 9, 20]))), expected([5, 9, 20]))


def test_what_is_missing_is_told(tmp_path):
    store = fill(tmp_path)
    assert store.missing(SEEDS) == []
    assert Store.open(tmp_path) == store
    Shard(tmp_path, range(8, 12), MANIFEST).path.unlink()
    assert store.missing(range(10, 30)) == [10, 11, *range(25, 30)]
    for read in (lambda: store.images([3, 9]), lambda: list(store.batches(2, [3, 9]))):
        with one_line("2 seeds in .*, of which 1 are missing, the first of seed 9"):
            read()


def test_a_stored_run_is_sampled_once(tmp_path):
    store = Store.below(tmp_path, MANIFEST)
    store.fill(SEEDS, make)
    assert torch.equal(store.images(SEEDS), expected(SEEDS))
    again = Store.below(tmp_path, MANIFEST)
    again.fill(range(5, 9), lambda _: pytest.fail("sampled again"))
    assert torch.equal(again.images(range(5, 9)), expected(range(5, 9)))
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST.name]
    assert MANIFEST.name.startswith("mini-ddpm-ddim-3-uncached-")
    other = manifest(plan={"num_steps": 3, "full_steps": [0, 2], "branch": 0, "order": 0})
    assert other.name.startswith("mini-ddpm-ddim-3-2-full-")


CHANGES = {
    "model": "mini-ldm",
    "weights": "trained sha256:01",
    "scheduler": "plms",
    "scheduler_config": {"beta_start": 0.0001, "beta_end": 0.03},
    "num_steps": 4,
    "guidance_scale": 1.5,
    "conditions": "random classes of 10",
    "plan": {"num_steps": 3, "full_steps": [0, 2], "branch": 0, "order": 0},
    "dtype": "fp16",
    "image_size": [4, 4],
    "batch_size": 5,
    "shard_size": 5,
    "schema": 3,
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_store_with_another_manifest_is_refused_and_stays_as_it_is(tmp_path, name):
    before = hashes(fill(tmp_path).folder)
    other = manifest(**{name: CHANGES[name]})
    with one_line(rf"differs in {name}\b.* \(there .*, here .*\)") as _:
        Store.create(tmp_path, other)
    assert hashes(tmp_path) == before
    assert other.name != MANIFEST.name


def test_every_attribute_of_a_manifest_is_compared_but_who_made_it():
    compared = {field.name for field in fields(Manifest) if field.compare}
    assert compared == set(CHANGES)
    assert {field.name for field in fields(Manifest)} - compared == {"made_with"}


def test_a_refusal_names_what_differs_and_shortens_long_values(tmp_path):
    fill(tmp_path)
    with one_line(r"num_steps \(there 3, here 4\); scheduler_config.beta_end \(there 0.02, here 0.03\); take"):
        Store.create(tmp_path, manifest(num_steps=4, scheduler_config=CHANGES["scheduler_config"]))
    with one_line(r"conditions \(there 'none', here 'x{199}\.\.\.\); take"):
        Store.create(tmp_path, manifest(conditions="x" * 1000))


def test_a_store_decides_the_layout_of_who_follows_it(tmp_path):
    fill(tmp_path / "alone")
    fill(tmp_path / "many", range(3, 12))
    other = manifest(shard_size=5, batch_size=7, made_with={"device": "another"})
    store = Store.create(tmp_path / "many", other, follows=LAYOUT)
    assert (store.manifest.shard_size, store.manifest.batch_size) == (4, 4)
    store.fill(SEEDS, make)
    assert hashes(tmp_path / "many") == hashes(tmp_path / "alone")


def test_of_many_manifests_at_once_one_is_kept(tmp_path):
    """Another process writes its manifest between this process's look and its write."""
    real = os.link

    def late(source: Path, target: Path) -> None:
        target.write_text(manifest(num_steps=4).to_json())
        real(source, target)

    with patch.object(os, "link", late), one_line("num_steps"):
        Store.create(tmp_path, MANIFEST)
    assert list(hashes(tmp_path)) == ["manifest.json"]


def altered(**changes: object) -> str:
    return json.dumps({**json.loads(MANIFEST.to_json()), **changes})


@pytest.mark.parametrize(
    "text",
    [
        *["", "{}", "[]", "{", "\0", "[" * 100_000, '{"schema": 2}', altered(schema=1), altered(schema=[2])],
        *(altered(shard_size=value) for value in (0, -4, "2", None, 2.5, True, 10**30, [4], {})),
        *(altered(**{name: value}) for name in ("num_steps", "batch_size") for value in (0, "3", None, 10**9)),
        *(altered(image_size=value) for value in ([], [2], [2, 4, 3], [2, 0], [2, "4"], [2, 10**9], 2, None)),
        *(altered(plan=value) for value in ({}, [], "uncached", {"num_steps": 3, "full_steps": [1]})),
        *(altered(**{name: value}) for name in ("model", "weights", "conditions", "dtype") for value in (1, None, [])),
        *(altered(**{name: value}) for name in ("scheduler_config", "made_with") for value in (1, None, [], "x")),
        *(altered(guidance_scale=value) for value in ("1", [], float("nan"), float("inf"), True)),
        altered(more=1),
        altered(model="\ud800"),
        altered(model="x")[:-1] + ', "num_steps": ' + "9" * 5_000 + "}",
    ],
    ids=lambda text: text[-40:],
)
def test_what_is_no_manifest_is_refused(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    for look in (lambda: Store.open(tmp_path), lambda: Store.create(tmp_path, MANIFEST)):
        with one_line(f"expected .* in {tmp_path / 'manifest.json'}, "):
            look()
    with one_line("expected a store with a manifest"):
        Store.open(tmp_path / "none")


def test_equal_samples_give_equal_bytes_at_any_time(tmp_path):
    """The broken variant lets zipfile stamp entries with the clock."""

    def stamped(images: np.ndarray) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("arr_0.npy", images.tobytes())
        return file.getvalue()

    written, broken = [], []
    for clock in (1.5e9, 1.7e9):
        with patch.object(time, "time", lambda now=clock: now):
            shard = Shard(tmp_path, range(4), MANIFEST)
            shard.write(make(range(4)))
            written.append(shard.path.read_bytes())
            broken.append(stamped(make(range(4))))
    assert written[0] == written[1]
    assert broken[0] != broken[1]


def test_stores_of_earlier_versions_are_continued(tmp_path):
    """Stored values: the digest of a manifest of schema 2, and the bytes of a shard."""
    assert MANIFEST.digest == "e9f12374496dadb4ccc2f3c84da8b6575feda48b9ab850fe32d4f55e2ba93dec"
    assert hashes(fill(tmp_path).folder)[SHARD] == "1936e2e5f0def4e8fda131b79db868f09f68b55cabdf3780a5a45f6ef91541f6"


def test_a_shard_is_read_by_numpy_as_the_adm_suite_reads_it(tmp_path):
    fill(tmp_path)
    with np.load(tmp_path / "seeds-00000004-00000008.npz", allow_pickle=False) as file:
        assert set(file.files) == {"arr_0", "seeds", "origin.txt"}
        assert np.array_equal(file["arr_0"], make(range(4, 8)))
        assert file["seeds"].tolist() == [4, 5, 6, 7]


SHARD = Shard(Path(), range(4, 8), MANIFEST).path.name


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def written_over(path: Path) -> None:
    path.write_text("text")


def without_origin(path: Path) -> None:
    """Write a file as the store's first version did."""
    np.savez(path, arr_0=make(range(4, 8)), seeds=np.arange(4, 8))


def of_another_plan(path: Path) -> None:
    other = Store.create(path.parent / "other", manifest(plan={**CHANGES["plan"], "branch": 1}))
    other.fill(range(4, 8), make)
    path.write_bytes((other.folder / SHARD).read_bytes())


def of_other_seeds(path: Path) -> None:
    path.write_bytes(path.with_name("seeds-00000008-00000012.npz").read_bytes())


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_link_to_nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


SPOILED = {
    cut: "which is truncated or altered .*; delete it and sample again",
    emptied: "which is truncated or altered .*; delete it and sample again",
    written_over: "which is truncated or altered .*; delete it and sample again",
    without_origin: "which says nothing of its origin; move it to another folder and sample again",
    of_another_plan: "which was made of other seeds or settings; move it to another folder and sample again",
    of_other_seeds: "which was made of other seeds or settings; move it to another folder and sample again",
    a_folder: "which is no file; move it away and sample again",
    a_pipe: "which is no file; move it away and sample again",
    a_link_to_nowhere: "which cannot be read .*; mend that and run the command again",
}


@pytest.mark.parametrize("spoil", SPOILED)
def test_a_shard_is_more_than_its_name(tmp_path, spoil):
    """Filling, counting and reading the store refuse the file; once the file is gone, it is made again."""
    store = fill(tmp_path)
    spoil(tmp_path / SHARD)
    for look in (
        lambda: store.fill(SEEDS, lambda _: pytest.fail("sampled")),
        lambda: store.missing(SEEDS),
        store.seeds,
        lambda: next(store.batches(2)),
        lambda: store.images(SEEDS),
    ):
        with one_line(f"expected the samples of seeds 4:8 in {tmp_path / SHARD}, {SPOILED[spoil]}"):
            look()
    (tmp_path / SHARD).rmdir() if spoil is a_folder else (tmp_path / SHARD).unlink()
    assert store.missing(SEEDS) == [4, 5, 6, 7]
    store.fill(SEEDS, make)
    assert torch.equal(store.images(SEEDS), expected(SEEDS))


def test_a_refusal_counts_the_files_and_names_some(tmp_path):
    store = fill(tmp_path, range(40))
    for path in tmp_path.glob("seeds-*"):
        cut(path)
    names = ", ".join(f"seeds-{start:08d}-{start + 4:08d}.npz" for start in (4, 8, 12, 16))
    with one_line(rf"seeds 0:4 in .*; 9 more are refused: {names}, \.\.\.$"):
        store.missing(range(40))


def test_the_look_at_a_file_tells_every_truncation(tmp_path):
    """The file is cut to every length, at its end and at its beginning."""
    fill(tmp_path, range(4, 8))
    shard = Shard(tmp_path, range(4, 8), MANIFEST)
    whole = shard.path.read_bytes()
    shard.require()
    for length in range(len(whole)):
        for part in (whole[:length], whole[len(whole) - length :]):
            shard.path.write_bytes(part)
            with one_line("truncated or altered"):
                shard.require()


def test_a_file_of_which_any_byte_is_altered_is_refused_or_still_right(tmp_path):
    """Zip files have bytes without a meaning, such as a time; a change of any other byte is refused."""
    fill(tmp_path, range(4, 8))
    shard = Shard(tmp_path, range(4, 8), MANIFEST)
    whole, refused = shard.path.read_bytes(), 0
    for place in range(len(whole)):
        shard.path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            found = shard.read()
        except DeepCacheError:
            refused += 1
        else:
            assert np.array_equal(found, make(range(4, 8)))
    assert refused > len(whole) / 2


@pytest.mark.parametrize(
    "arrays",
    [
        {"seeds": np.arange(4, 8)},
        {"arr_0": make(range(3)), "seeds": np.arange(4, 8)},
        {"arr_0": make(range(4)), "seeds": np.arange(4)},
        {"arr_0": make(range(4)) / 255, "seeds": np.arange(4, 8)},
        {"arr_0": make(range(4)).reshape(4, 4, 2, 3), "seeds": np.arange(4, 8)},
        {"arr_0": np.array(None), "seeds": np.arange(4, 8)},
        {"arr_0": make(range(4)), "seeds": np.arange(4, 10**6)},
    ],
    ids=lambda arrays: ", ".join(f"{name} {values.dtype} {values.shape}" for name, values in arrays.items()),
)
def test_arrays_that_are_not_the_shards_are_refused(tmp_path, arrays):
    """The file's origin is that of the store, but its arrays are not."""
    store = fill(tmp_path)
    with zipfile.ZipFile(tmp_path / SHARD) as archive:
        origin = archive.read("origin.txt")
    np.savez(tmp_path / SHARD, **arrays)
    with zipfile.ZipFile(tmp_path / SHARD, "a") as archive:
        archive.writestr("origin.txt", origin)
    with one_line(rf"samples of seeds 4:8 in {tmp_path / SHARD}, which is truncated or altered \("):
        store.images(SEEDS)


def test_files_without_their_manifest_are_refused_and_stay_as_they_are(tmp_path):
    folder = tmp_path / MANIFEST.name
    before = hashes(fill(folder).folder)
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").unlink()
    for look in (lambda: Store.create(folder, MANIFEST), lambda: Store.below(tmp_path, MANIFEST)):
        with one_line(rf"{folder}, got 7 files of samples without it; put their manifest.json back, or take another"):
            look()
    (folder / "manifest.json").write_text(text)
    assert hashes(folder) == before


def test_a_manifest_that_was_altered_owns_no_shards(tmp_path):
    """The new manifest is valid, but has another layout than the shards."""
    fill(tmp_path)
    (tmp_path / "manifest.json").write_text(altered(shard_size=5))
    with one_line("which was made of other seeds or settings"):
        fill_as(tmp_path, manifest(shard_size=5))


def fill_as(folder: Path, own: Manifest) -> None:
    Store.create(folder, own).fill(SEEDS, make)


@pytest.mark.parametrize("name", ["seeds-00000004-00000004.npz", "seeds-00000008-00000004.npz", "seeds-4-8.npz"])
def test_names_that_no_shard_has_are_left_alone(tmp_path, name):
    (tmp_path / name).write_text("mine")
    (tmp_path / f"seeds-00000000-{2**63 + 1}.npz").write_text("mine")
    assert fill(tmp_path).seeds() == list(SEEDS)
    assert (tmp_path / name).read_text() == "mine"


def test_a_name_that_tells_a_billion_seeds_is_refused_by_what_is_in_it(tmp_path):
    store = fill(tmp_path)
    (tmp_path / "seeds-00000000-1000000000.npz").write_bytes((tmp_path / SHARD).read_bytes())
    with one_line("seeds 0:1000000000 in .* made of other seeds or settings"):
        store.seeds()


def test_planning_looks_at_every_file_once(tmp_path):
    """The number of files that are opened and listed is counted (exact), for two numbers of shards."""
    for count in (50, 200):
        store = Store.create(tmp_path / str(count), MANIFEST)
        store.fill(range(4 * count), make)
        (store.folder / SHARD).unlink()
        with (
            patch.object(os, "listdir", side_effect=os.listdir) as listed,
            patch.object(zipfile, "ZipFile", side_effect=zipfile.ZipFile) as opened,
        ):
            assert store.work(range(4 * count + 2), Worker()) == [range(4, 8), range(4 * count, 4 * count + 2)]
        assert (listed.call_count, opened.call_count) == (1, count - 1)


@pytest.mark.parametrize("seeds", [range(2**63 - 2, 2**63), range(2**63 - 5, 2**63 - 1)])
def test_the_largest_seeds_are_read_back(tmp_path, seeds):
    def zeros(block: range) -> np.ndarray:
        return np.zeros((len(block), 2, 4, 3), np.uint8)

    store = Store.create(tmp_path, MANIFEST)
    store.fill(seeds, zeros)
    assert store.seeds() == list(seeds)
    assert len(store.images(list(seeds))) == len(seeds)


@pytest.mark.parametrize("seeds", [range(2**63 - 1, 2**63 + 1), range(2**64, 2**64 + 2), range(-1, 2)])
def test_seeds_that_no_file_can_hold_are_refused_before_they_are_sampled(tmp_path, seeds):
    with one_line(r"expected seeds from 0 to 2\^63 - 1, got -?\d+"):
        Store.create(tmp_path, MANIFEST).fill(seeds, lambda _: pytest.fail("sampled"))


def test_samples_of_another_size_are_refused(tmp_path):
    store = Store.create(tmp_path, MANIFEST)
    with one_line(r"expected samples of shape \(4, 2, 4, 3\), got \(4, 4, 4, 3\)"):
        store.fill(range(4), lambda seeds: np.zeros((len(seeds), 4, 4, 3), np.uint8))
    assert list(hashes(tmp_path)) == ["manifest.json"]


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("place", ["fsync", "write_array"])
def test_a_write_that_fails_leaves_what_was_finished_and_nothing_else(tmp_path, failure, place):
    before = hashes(fill(tmp_path, range(3, 8)).folder)
    module = os if place == "fsync" else np.lib.format
    refusal = pytest.raises(KeyboardInterrupt) if isinstance(failure, KeyboardInterrupt) else one_line("No space left")
    with patch.object(module, place, side_effect=failure), refusal:
        fill(tmp_path)
    assert hashes(tmp_path) == before
    assert torch.equal(fill(tmp_path).images(SEEDS), expected(SEEDS))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB, where the machine lets us mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root; the same with a patched write is above")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_keeps_the_finished_files_and_no_other(small_disk):
    def large(seeds: range) -> np.ndarray:
        return np.random.default_rng(seeds.start).integers(0, 256, (len(seeds), 32, 32, 3), np.uint8)

    store = Store.create(small_disk / "store", manifest(image_size=[32, 32]))
    with one_line("cannot write .*: No space left on device; free space or take another folder"):
        store.fill(range(400), large)
    there = store.seeds()
    assert there == list(range(len(there)))
    assert 8 <= len(there) < 400
    assert all(path.suffix in (".npz", ".json") for path in store.folder.iterdir())
    assert np.array_equal(store.images(range(4)).permute(0, 2, 3, 1).numpy(), large(range(4)))


def test_a_disk_that_has_become_read_only_is_one_line_where_something_is_to_be_written(small_disk):
    folder = fill(small_disk / "store").folder
    (folder / f".a-machine.00.{SHARD}.tmp").write_text("half")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    store = Store.create(folder, MANIFEST)
    store.fill(SEEDS, lambda _: pytest.fail("sampled again"))
    assert torch.equal(store.images(SEEDS), expected(SEEDS))
    with one_line("cannot write .*: Read-only file system; free space or take another folder"):
        store.fill(range(30), make)
    with one_line("expected a folder to write to, got .* [(]Read-only file system[)]"):
        Store.create(small_disk / "another", MANIFEST)


@pytest.mark.parametrize("place", ["listdir", "stat"])
def test_a_store_that_cannot_be_read_is_one_line_and_nobody_is_told_to_delete_it(tmp_path, place):
    store = fill(tmp_path)
    real, denied = getattr(os, place), PermissionError(errno.EACCES, "Permission denied")

    def refuse(path: Path, *arguments: object, **options: object) -> object:
        if Path(path) in (tmp_path, tmp_path / SHARD):
            raise denied
        return real(path, *arguments, **options)

    for look in (store.seeds, lambda: store.images(SEEDS), lambda: store.fill(SEEDS, make)):
        with patch.object(os, place, refuse), one_line("which cannot be read .Permission denied.; (correct|mend)"):
            look()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with one_line("expected a folder to write to"):
        Store.create(tmp_path / "file", MANIFEST)


def test_a_manifest_is_json_that_gives_it_again(tmp_path):
    store = Store.create(tmp_path, MANIFEST)
    assert json.loads((tmp_path / "manifest.json").read_text()) == json.loads(MANIFEST.to_json())
    assert Store.open(tmp_path).manifest == store.manifest == MANIFEST
    assert store.manifest.made_with == MANIFEST.made_with


def test_a_store_is_found_whatever_its_folder_is_called(tmp_path):
    """A store may be the folder itself or lie in it, as `sample --out` named it; other stores are left alone."""
    own = manifest()
    for folder in (tmp_path, tmp_path / "mine"):
        Store.create(folder, own)
        assert Store.below(tmp_path, own).folder == folder
        (folder / "manifest.json").unlink()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text("{")
    assert Store.below(tmp_path, own).folder == tmp_path / own.name
