"""Each reader answers or refuses in one line, within 2 s and 1 GiB, whatever the file has (an exact law; `readers.py`).

Valid files are changed where they have a structure (a value of another type, a number of 5,000 digits, lists 20,000
deep, arrays of other shapes) and byte by byte. The changes are the same in each run.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save

from deepcache import uniform
from deepcache.models.embedded import WEIGHTS
from deepcache.sampling.store import Store
from tests import compvis
from tests.examples import RECORDS, entries
from tests.readers import Readers, package
from tests.readers import planted as planted_readers
from tests.stores import MANIFEST, make

ODD = (  # JSON and, mostly, YAML
    "null", "true", "-1", "0", "1", "2", "0.5", "1000000", "1000000000", "9223372036854775808", "1e400", "NaN",
    "-Infinity", "1" + "0" * 400, "9" * 5_000, '""', '"\\ud800"', '"=1\\n\\\\input{x}"', '"\\u0000"', '"../x"',
    '"' + "x" * 20_000 + '"', "[]", "{}", "[[]]", '{"a": [1]}', "[1, 2, 3]", '["a"]', "[" * 20_000 + "]" * 20_000,
    '{"a":' * 10_000 + "1" + "}" * 10_000, "[" + "1," * 5_000 + "1]",
)  # fmt: skip
OF_YAML = (
    "&a [*a]",
    "&a {b: *a}",
    "!!python/name:os.system x",
    "!!bool 2",
    "!!timestamp x",
    "2001-99-99",
    "1:1:1",
    "~",
)
MARK = "the place of an odd value"
ARRAYS = (
    np.zeros(0), np.zeros(()), np.zeros(3), np.zeros((3, 3)), np.eye(3) * -1, np.eye(3) * 1j, np.full((3, 3), np.nan),
    np.full(3, 1e300), np.eye(4), np.zeros((9, 3), np.float16), np.zeros((2, 2, 2, 3), np.uint8), np.array(["a", "b"]),
    np.array([2**62]), np.zeros((2, 0, 4, 3), np.uint8), np.zeros((4, 2, 4, 3), np.uint8), np.arange(4), -np.arange(4),
    np.zeros(3, [("a", float)]), np.full((5, 3), np.inf, np.float32),
    np.array([1.0, 2.0, 3.0, 4.0]),
)  # fmt: skip
HEADERS = tuple(
    f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"
    for descr, shape in (
        ("'<f8'", "(1000000000000,)"), ("'<f8'", "(-1,)"), ("'|u1'", "(1000000000, 2, 4, 3)"), ("'|O'", "(1,)"),
        ("'|u1'", "(1, 9000, 9000, 3)"), ("'<f8'", "(1" + "0" * 5000 + ",)"), ("[" * 3000, "()"), ("'x9'", "()"),
        ("'<i8'", "'a'"), ("'|V1000000000'", "(1000,)"),
    )
)  # fmt: skip


@pytest.fixture(scope="module")
def readers() -> Iterator[Readers]:
    found = Readers(package())
    yield found
    found.close()


@pytest.fixture(scope="module")
def planted() -> Iterator[Readers]:
    found = Readers(planted_readers(), seconds=0.4)
    yield found
    found.close()


def places(value: Any) -> list[tuple[Any, ...]]:
    """The keys that lead to each value within a value, and to itself."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(), *((key, *rest) for key, inner in pairs for rest in places(inner))]


@st.composite
def altered_json(draw: st.DrawFn, value: Any, odd: tuple[str, ...] = ODD) -> bytes:
    """The text of a value in which some values are odd ones, are left out or have other names."""
    whole, snippets = [json.loads(json.dumps(value))], []
    for _ in range(draw(st.integers(1, 2))):
        *path, last = (0, *draw(st.sampled_from(places(whole[0]))))
        parent: Any = whole
        for key in path:
            parent = parent[key]
        kind = draw(st.sampled_from(["odd", "odd", "odd", "gone", "named"]))
        if kind == "gone" and path:
            del parent[last]
        elif kind == "named" and isinstance(parent, dict):
            parent[draw(st.sampled_from(["", "x", "../x", "\ud800", "schema"]))] = parent.pop(last)
        else:
            snippets.append(draw(st.sampled_from(odd)))
            parent[last] = f"{MARK} {len(snippets) - 1}"
    text = json.dumps(whole[0])
    for number, snippet in enumerate(snippets):
        text = text.replace(f'"{MARK} {number}"', snippet)
    return text.encode()


@st.composite
def altered_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes that are changed, cut off, left out, doubled, or set to one value."""
    found, size = bytearray(content), len(content)
    kind = draw(st.sampled_from(["flip", "flip", "flip", "cut", "out", "twice", "same"]))
    if kind == "flip":
        near = draw(st.sampled_from([min(size, 64), min(size, 512), size]))  # most formats say all in their first bytes
        for place in draw(st.lists(st.integers(0, near - 1), min_size=1, max_size=6)):
            found[place] = draw(st.integers(0, 255))
        return bytes(found)
    start = draw(st.integers(0, size - 1))
    stop = start + draw(st.integers(1, min(size, 100)))
    if kind == "cut":
        return bytes(found[:start])
    middle = {"out": b"", "twice": bytes(found[start:stop]) * 2, "same": b"\xff" * len(found[start:stop])}[kind]
    return bytes(found[:start]) + middle + bytes(found[stop:])


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@st.composite
def altered_arrays(draw: st.DrawFn, arrays: dict[str, np.ndarray]) -> bytes:
    """An `.npz` with an odd array or header, or compressed in any way; other members stay as they are."""
    others = {name: content for name, content in arrays.items() if isinstance(content, bytes)}
    members = {name: npy(array) for name, array in arrays.items() if name not in others}
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from(sorted({*members, "mu"})))
        kind = draw(st.sampled_from(["array", "array", "header", "bytes", "gone"]))
        if kind == "array":
            members[name] = npy(draw(st.sampled_from(ARRAYS)))
        elif kind == "header":
            header = draw(st.sampled_from(HEADERS)).encode() + b"\n"
            members[name] = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64)
        elif kind == "bytes" and name in members:
            members[name] = draw(altered_bytes(members[name]))
        else:
            members.pop(name, None)
    buffer = io.BytesIO()
    methods = [zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
    with zipfile.ZipFile(buffer, "w", draw(st.sampled_from(methods))) as archive:
        for name, content in ({f"{name}.npy": content for name, content in members.items()} | others).items():
            archive.writestr(name, content)
    return buffer.getvalue()


def odd_objects() -> list[Any]:
    itself: dict[Any, Any] = {}
    itself["state_dict"] = itself
    each_other: dict[str, Any] = {"state_dict": {}}
    each_other["state_dict"]["state_dict"] = each_other
    deep: Any = []
    for _ in range(200):
        deep = {"state_dict": deep}
    wide = torch.zeros(1).expand(10**12)
    sparse = torch.sparse_coo_tensor(
        torch.zeros(1, 1, dtype=torch.int64), torch.ones(1), (10**12,), check_invariants=True
    )
    return [
        itself, each_other, deep, {"a": wide}, {"a": sparse}, {"a": torch.empty(10**12, device="meta")}, None, 1, [],
        {}, {1: torch.zeros(1)}, {"state_dict": None}, {"state_dict": [torch.zeros(1)]}, {"a": 10**400}, torch.zeros(2),
        {"a": torch.zeros(2, dtype=torch.complex64)}, {"a" * 10_000: torch.zeros(1)}, {"a\n": wide}, {(1, 2): 3},
    ]  # fmt: skip


@st.composite
def altered_checkpoint(draw: st.DrawFn) -> bytes:
    found = draw(st.sampled_from([*odd_objects(), {"state_dict": {"a": torch.zeros(2, 2), "b": torch.ones(3)}}]))
    buffer = io.BytesIO()
    torch.save(found, buffer, _use_new_zipfile_serialization=draw(st.booleans()))
    return draw(st.one_of(st.just(buffer.getvalue()), altered_bytes(buffer.getvalue())))


@st.composite
def altered_safetensors(draw: st.DrawFn) -> bytes:
    content = save({"a": np.zeros((2, 2), np.float32), "pooled.mean": np.ones(3, np.float32)})
    if draw(st.booleans()):
        return draw(altered_bytes(content))
    size = int.from_bytes(content[:8], "little")
    header = draw(altered_json(json.loads(content[8 : 8 + size])))
    length = draw(st.sampled_from([len(header), len(header), 0, 1, 2**40, 2**63]))
    return length.to_bytes(8, "little") + header + content[8 + size :]


def picture(kind: str, mode: str = "RGB") -> bytes:
    values = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    image = Image.fromarray(values[..., 0].astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(values)
    buffer = io.BytesIO()
    (image if mode == "I;16" else image.convert(mode)).save(buffer, kind)
    return buffer.getvalue()


PICTURES = {
    f"{kind} {mode}": picture(kind, mode)
    for kind, modes in {
        "PNG": ("RGB", "L", "P", "RGBA", "1", "I;16"), "JPEG": ("RGB", "L", "CMYK"), "GIF": ("P",), "BMP": ("RGB",),
        "WEBP": ("RGB",), "TIFF": ("RGB", "P", "I;16", "F", "CMYK"),
    }.items()
    for mode in modes
}  # fmt: skip
REFERENCE = {
    "mu": np.zeros(3), "sigma": np.eye(3), "mu_s": np.zeros(3), "sigma_s": np.eye(3),
    "features": np.random.default_rng(0).uniform(size=(6, 3)).astype(np.float32),
    "arr_0": np.random.default_rng(0).integers(0, 256, (5, 2, 4, 3), dtype=np.uint8),
}  # fmt: skip
COCO = {"annotations": [{"image_id": i, "id": i, "caption": f"bond {i}"} for i in range(3)], "images": []}
MEASURED = [replace(record, per_seed={"psnr_db": [1.0, 2.0]}) for record in RECORDS[:3]]
RESULTS = {"deepcache": entries(MEASURED), "benchmarks": []}
PASSED = {**RESULTS, "deepcache": [{**record, "outcome": "passed"} for record in RESULTS["deepcache"]]}
ORIGIN = f"sha256:{MANIFEST.digest} seeds 0:4\n".encode()
SHARD = {"arr_0": make(range(4)), "seeds": np.arange(4), "origin.txt": ORIGIN}


def stored(folder: str) -> Any:
    return json.loads((WEIGHTS / "mini-ddpm" / folder).read_text())


TEXT = 'bond\n"Hi" on a wall\n\nété\n'.encode()
TABLE = b"Prompt\tCategory\nbond\tAbstract\nb\tc\n"
PLAN = json.loads(uniform(10, 3).to_json())
YAML = compvis.config()
UNET, SCHEDULER, INDEX = (
    stored(f) for f in ("unet/config.json", "scheduler/scheduler_config.json", "model_index.json")
)


def of_json(value: Any, odd: tuple[str, ...] = ODD) -> st.SearchStrategy[bytes]:
    return st.one_of(altered_json(value, odd), altered_json(value, odd), altered_bytes(json.dumps(value).encode()))


# the reader, the file's name, its contents, and how many of these are tried
FILES: dict[str, tuple[str, str, st.SearchStrategy[bytes], int]] = {
    "prompts a line each": ("prompts", "prompts.txt", altered_bytes(TEXT), 30),
    "prompts in a table": ("prompts", "prompts.TSV", altered_bytes(TABLE), 30),
    "COCO's captions": ("prompts", "captions.json", of_json(COCO), 30),
    "pictures": (
        "picture",
        "a.png",
        st.sampled_from([*PICTURES.values()]).flatmap(altered_bytes),
        100,
    ),
    "reference": ("reference", "a.npz", altered_arrays(REFERENCE), 50),
    "damaged reference": ("reference", "a.npz", altered_arrays(REFERENCE).flatmap(altered_bytes), 30),
    "images as an array": ("reference", "a.npz", altered_arrays({"arr_0": REFERENCE["arr_0"]}), 30),
    "reference in safetensors": ("reference", "a.safetensors", altered_safetensors(), 40),
    "checkpoint": ("checkpoint", "a.ckpt", altered_checkpoint(), 60),
    "safetensors": ("checkpoint", "a.safetensors", altered_safetensors(), 30),
    "CompVis' YAML": ("yaml", "config.yaml", of_json(YAML, (*ODD, *OF_YAML)), 40),
    "U-Net's configuration": ("architecture", "config.json", of_json(UNET), 30),
    "index of a folder": ("index", "model_index.json", of_json(INDEX), 12),
    "U-Net in a folder": ("part", "unet/config.json", of_json(UNET), 12),
    "scheduler in a folder": ("part", "scheduler/scheduler_config.json", of_json(SCHEDULER), 12),
    "index of networks": ("skeleton", "model_index.json", of_json(INDEX | {"vae": ["diffusers", "AutoencoderKL"]}), 20),
    "plan": ("plan", "plan.json", of_json(PLAN), 100),
    "manifest": ("store", "manifest.json", of_json(json.loads(MANIFEST.to_json())), 40),
    "shard": ("store", "seeds-00000000-00000004.npz", altered_arrays(SHARD), 30),
    "damaged shard": ("shards", "seeds-00000000-00000004.npz", altered_arrays(SHARD).flatmap(altered_bytes), 40),
    "records": ("records", "results.json", of_json(RESULTS), 40),
    "records a line each": ("records", "records.jsonl", of_json(RESULTS["deepcache"][1]), 30),
    "results at the gate": ("gate", "results.json", of_json(PASSED), 30),
    "baseline at the gate": ("gate", "baseline.json", of_json(PASSED), 30),
}


def surroundings(folder: Path, name: str) -> Path:
    """The path of a file to be written, in a folder that has what is read beside it."""
    kind = FILES[name][0]
    if kind in ("index", "part", "skeleton"):
        shutil.copytree(WEIGHTS / "mini-ddpm", folder, dirs_exist_ok=True)
    if kind in ("store", "shards"):
        Store.create(folder, MANIFEST).fill(range(4), make)
    if kind == "gate":
        (folder / "results.json").write_text(json.dumps(PASSED))
        (folder / "baseline.json").write_text(json.dumps(PASSED))
    return folder / FILES[name][1]


@pytest.mark.parametrize("name", FILES)
def test_an_altered_file_is_answered_or_refused_in_one_line(readers, tmp_path, name):
    reader, _, contents, count = FILES[name]
    path = surroundings(tmp_path, name)
    read = path.with_name("results.json") if name == "baseline at the gate" else path
    found: dict[str, bytes] = {}

    @settings(
        max_examples=count, derandomize=True, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(contents)
    def run(content: bytes) -> None:
        path.write_bytes(content)
        said = readers.read(reader, read)
        if said.startswith("wrong"):
            found.setdefault(said, content[:500])

    run()
    assert not found, "\n".join(f"{said}\n    {content!r}" for said, content in found.items())


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_file_is_refused_in_one_line(readers, tmp_path, name):
    path = surroundings(tmp_path, name)
    read = path.with_name("results.json") if name == "baseline at the gate" else path
    path.unlink(missing_ok=True)

    def outcome(make: Callable[[], object]) -> str:
        make()
        said = readers.read(FILES[name][0], read)
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        return said

    kinds = {
        "empty": path.touch,
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "endless": lambda: path.symlink_to("/dev/zero"),
        "circle": lambda: path.symlink_to(path),
        "hole": lambda: _hole(path),
    }
    found = {kind: outcome(make) for kind, make in kinds.items()}
    wrong = [f"{kind}: {said}" for kind, said in found.items() if said.startswith("wrong")]
    assert not wrong, "\n".join(wrong)


def _hole(path: Path) -> None:
    """A file of 800 MB of zeros that takes no room on the disk; its bytes and its text would take more than allowed."""
    with path.open("wb") as file:
        file.truncate(800_000_000)


@pytest.mark.parametrize("name", FILES)
def test_the_files_that_are_altered_are_valid(readers, tmp_path, name):
    """Test of the test: what is altered would be read, so that alterations reach all of a reader."""
    whole = {
        "prompts a line each": TEXT, "prompts in a table": TABLE, "COCO's captions": COCO,
        "reference": REFERENCE, "damaged reference": REFERENCE, "images as an array": {"arr_0": REFERENCE["arr_0"]},
        "CompVis' YAML": YAML, "U-Net's configuration": UNET, "plan": PLAN, "records": RESULTS, "shard": SHARD,
        "pictures": PICTURES["PNG RGB"], "records a line each": RESULTS["deepcache"][1], "damaged shard": SHARD,
    }  # fmt: skip
    path = surroundings(tmp_path, name)
    content = whole.get(name)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif path.suffix == ".npz":
        with zipfile.ZipFile(path, "w") as archive:
            for member, part in content.items():
                archive.writestr(
                    member if isinstance(part, bytes) else f"{member}.npy",
                    part if isinstance(part, bytes) else npy(part),
                )
    elif content is not None:
        path.write_text(json.dumps(content))
    elif not path.exists() and path.suffix == ".ckpt":
        torch.save({"a": torch.zeros(1)}, path)
    elif not path.exists():
        tensors = {f"{kind}.{part}": np.eye(3) for kind in ("pooled", "spatial") for part in ("mean", "covariance")}
        tensors = {key: value[0] if key.endswith("mean") else value for key, value in tensors.items()}
        path.write_bytes(save(tensors | {"features": REFERENCE["features"]}))
    assert readers.read(FILES[name][0], path) == "answered"


@pytest.mark.parametrize(
    ("reader", "said"),
    [
        ("hangs", "more than 0.4 s"),
        ("hangs in c", "more than 0.4 s"),
        ("waits", "it waited"),
        ("hoards", "more than 1073741824 bytes"),
        ("raises", "KeyError: \"'key'\", outside of the package"),
        ("exits", "it died with 0"),
        ("babbles", "4009 characters"),
    ],
)
def test_a_reader_that_breaks_the_law_is_noticed(planted, tmp_path, reader, said):
    os.mkfifo(tmp_path / "pipe")
    assert said in planted.read(reader, tmp_path / "pipe", wait_s=0.5 if reader == "waits" else 20)
    assert planted.read("answers", tmp_path / "pipe") == "answered"
