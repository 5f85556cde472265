"""A store has each sample once, in whole files, of one manifest (exact laws on samples that tell their seed)."""

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
from stores import MANIFEST, hashes, make, manifest

from deepcache import temporary
from deepcache.errors import DeepCacheError
from deepcache.sampling.manifest import Manifest
from deepcache.sampling.shards import Shard, aligned, blocks
from deepcache.sampling.store import Store
from deepcache.sampling.workers import Worker

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


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_every_shard_has_one_worker(count):
    workers = [Worker(rank, count) for rank in range(count)]
    assert all(sum(worker.owns(shard) for worker in workers) == 1 for shard in range(50))


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
    """The second asks for a part of what the first is about to write."""
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
    assert store.is_complete(SEEDS)
    assert Store.open(tmp_path) == store
    Shard.of(tmp_path, range(8, 12)).path.unlink()
    assert not store.is_complete(SEEDS)
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
    "schema": 2,
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_store_with_another_manifest_is_refused_and_stays_as_it_is(tmp_path, name):
    before = hashes(fill(tmp_path).folder)
    other = manifest(**{name: CHANGES[name]})
    with one_line(rf"differs in {name}\b.* \(there .*, here .*\)") as _:
        Store.create(tmp_path, other)
    assert hashes(tmp_path) == before
    assert other.name != MANIFEST.name


def test_every_attribute_of_a_manifest_is_compared_but_two():
    compared = {field.name for field in fields(Manifest) if field.compare}
    assert compared == set(CHANGES)
    assert {field.name for field in fields(Manifest)} - compared == {"shard_size", "made_with"}


def test_a_refusal_names_what_differs_and_shortens_long_values(tmp_path):
    fill(tmp_path)
    with one_line(r"num_steps \(there 3, here 4\); scheduler_config.beta_end \(there 0.02, here 0.03\); take"):
        Store.create(tmp_path, manifest(num_steps=4, scheduler_config=CHANGES["scheduler_config"]))
    with one_line(r"conditions \(there \"none\", here \"x{56}\.\.\.\); take"):
        Store.create(tmp_path, manifest(conditions="x" * 100))


def test_the_first_writer_says_how_many_samples_a_file_has(tmp_path):
    fill(tmp_path / "alone")
    fill(tmp_path / "many", range(3, 12))
    store = Store.create(tmp_path / "many", manifest(shard_size=5, made_with={"device": "another"}))
    store.fill(SEEDS, make)
    assert hashes(tmp_path / "many") == hashes(tmp_path / "alone")


def test_of_many_manifests_at_once_one_is_kept(tmp_path):
    """The other comes between this one's look and its write."""
    real = temporary.os.link

    def late(source: Path, target: Path) -> None:
        target.write_text(manifest(num_steps=4).to_json())
        real(source, target)

    with patch.object(temporary.os, "link", late), one_line("num_steps"):
        Store.create(tmp_path, MANIFEST)
    assert list(hashes(tmp_path)) == ["manifest.json"]


@pytest.mark.parametrize("text", ["", "{}", "[]", "{", '{"schema": 2}'])
def test_what_is_no_manifest_is_refused(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    for look in (lambda: Store.open(tmp_path), lambda: Store.create(tmp_path, MANIFEST)):
        with one_line("manifest"):
            look()
    with one_line("expected a store with a manifest"):
        Store.open(tmp_path / "none")


def test_equal_samples_give_equal_bytes_at_any_time(tmp_path):
    """zipfile's own habit, to stamp entries with the clock, would not."""

    def stamped(images: np.ndarray) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("arr_0.npy", images.tobytes())
        return file.getvalue()

    written, broken = [], []
    for clock in (1.5e9, 1.7e9):
        with patch.object(time, "time", lambda now=clock: now):
            shard = Shard.of(tmp_path, range(4))
            shard.write(make(range(4)))
            written.append(shard.path.read_bytes())
            broken.append(stamped(make(range(4))))
    assert written[0] == written[1]
    assert broken[0] != broken[1]


def test_a_shard_is_read_by_numpy_as_the_adm_suite_reads_it(tmp_path):
    fill(tmp_path)
    with np.load(tmp_path / "seeds-00000004-00000008.npz", allow_pickle=False) as file:
        assert file.files == ["arr_0", "seeds"]
        assert np.array_equal(file["arr_0"], make(range(4, 8)))
        assert file["seeds"].tolist() == [4, 5, 6, 7]


def _cut(content: bytes) -> bytes:
    return content[:-50]


def _flipped(content: bytes) -> bytes:
    place = content.index(make(range(4, 8)).tobytes())
    return content[: place + 3] + b"\xff" + content[place + 4 :]


def _npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        _cut,
        _flipped,
        lambda _: b"",
        lambda _: b"text",
        lambda _: _npz(seeds=np.arange(4, 8)),
        lambda _: _npz(arr_0=make(range(3)), seeds=np.arange(4, 8)),
        lambda _: _npz(arr_0=make(range(4)), seeds=np.arange(4)),
        lambda _: _npz(arr_0=make(range(4)) / 255, seeds=np.arange(4, 8)),
        lambda _: _npz(arr_0=np.array(None), seeds=np.arange(4, 8)),
    ],
)
def test_a_broken_file_is_named_and_nothing_read(tmp_path, content):
    store = fill(tmp_path)
    path = tmp_path / "seeds-00000004-00000008.npz"
    path.write_bytes(content(path.read_bytes()))
    with one_line(rf"samples of seeds 4:8 in {path}, which is truncated or altered; delete it and sample again"):
        store.images(SEEDS)
    path.unlink()
    store.fill(SEEDS, make)
    assert torch.equal(store.images(SEEDS), expected(SEEDS))


def test_samples_of_another_size_are_refused(tmp_path):
    store = Store.create(tmp_path, MANIFEST)
    with one_line(r"expected samples of shape \(4, 2, 4, 3\), got \(4, 4, 4, 3\)"):
        store.fill(range(4), lambda seeds: np.zeros((len(seeds), 4, 4, 3), np.uint8))
    assert list(hashes(tmp_path)) == ["manifest.json"]


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("place", ["fsync", "savez"])
def test_a_write_that_fails_leaves_what_was_finished_and_nothing_else(tmp_path, failure, place):
    before = hashes(fill(tmp_path, range(3, 8)).folder)
    module = temporary.os if place == "fsync" else np
    refusal = pytest.raises(KeyboardInterrupt) if isinstance(failure, KeyboardInterrupt) else one_line("No space left")
    with patch.object(module, place, side_effect=failure), refusal:
        fill(tmp_path)
    assert hashes(tmp_path) == before
    assert torch.equal(fill(tmp_path).images(SEEDS), expected(SEEDS))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """64 KiB, where the machine lets us mount it."""
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


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with one_line("expected a folder to write to"):
        Store.create(tmp_path / "file", MANIFEST)


def test_what_killed_processes_left_is_removed_and_what_others_write_is_not(tmp_path):
    """Ours: of the dead and of an earlier life under our number. Others' machines: what is old."""
    host, dead = temporary.socket.gethostname(), subprocess.Popen(["true"])
    dead.wait()
    name = "seeds-00000004-00000008.npz.tmp"
    gone = [f".{host}.{dead.pid}.{name}", f".{host}.{os.getpid()}.{name}", f".a.node.{os.getppid()}.{name}"]
    kept = [f".{host}.{os.getppid()}.{name}", f".another.node.{dead.pid}.{name}", ".a.tmp", ".b.1.c.tmp"]
    for path in (*gone, *kept):
        (tmp_path / path).write_text("half")
    old = time.time() - temporary.ABANDONED_S - 10
    os.utime(tmp_path / gone[2], (old, old))
    store = fill(tmp_path)
    assert store.is_complete(SEEDS)
    assert {path.name for path in tmp_path.glob(".*")} == set(kept)


def test_seeds_fall_into_shards_and_blocks():
    assert list(aligned(range(3, 9), 4)) == [(0, range(3, 4)), (1, range(4, 8)), (2, range(8, 9))]
    assert list(aligned(range(4, 8), 4)) == [(1, range(4, 8))]
    assert list(blocks([1, 2, 5, 7, 8])) == [range(1, 3), range(5, 6), range(7, 9)]
    assert list(blocks([])) == []


def test_a_manifest_is_json_that_gives_it_again(tmp_path):
    store = Store.create(tmp_path, MANIFEST)
    assert json.loads((tmp_path / "manifest.json").read_text()) == json.loads(MANIFEST.to_json())
    assert Store.open(tmp_path).manifest == store.manifest == MANIFEST
    assert store.manifest.made_with == MANIFEST.made_with


def test_a_store_is_found_whatever_its_folder_is_called(tmp_path):
    """As `sample --out` names it, below or as the folder itself; another's beside it is left alone."""
    own = manifest()
    for folder in (tmp_path, tmp_path / "mine"):
        Store.create(folder, own)
        assert Store.below(tmp_path, own).folder == folder
        (folder / "manifest.json").unlink()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text("{")
    assert Store.below(tmp_path, own).folder == tmp_path / own.name
