"""Files from elsewhere are read as json and yaml read them, or refused in one line that names them (exact)."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

from deepcache.errors import DeepCacheError, first_line, shown
from deepcache.files import MOST_DEEP, read_bytes, read_json, read_yaml

DEEP = 20_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


def refusal(read, path) -> str:
    with pytest.raises(DeepCacheError) as caught:
        read(path, "a list")
    assert str(caught.value).startswith("expected a list")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(path))
    return str(caught.value)


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    "value", [None, 1, 2**64, -1.5, "été \U0001f600", [], {"a": [{"b": [True]}], "": 1e300}, [0] * 100_000]
)
def test_what_json_and_yaml_write_is_read(path, value):
    path.write_text(json.dumps(value))
    assert read_json(path, "a list") == value
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8-sig")
    assert read_json(path, "a list") == value
    if not isinstance(value, list):
        path.write_text(yaml.safe_dump(value))
        assert read_yaml(path, "a list") == value


@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_values_may_lie_so_deep_within_each_other_and_no_deeper(path, read):
    path.write_text(nested(MOST_DEEP))
    read(path, "a list")
    for depth in (MOST_DEEP + 2, 900, DEEP):
        path.write_text(nested(depth))
        assert f"more than {MOST_DEEP} deep" in refusal(read, path)
    path.write_text('{"a":' * 10_000 + "1" + "}" * 10_000)  # more is too large for a YAML file
    assert f"more than {MOST_DEEP} deep" in refusal(read, path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"9" * 5_000, "no JSON"),
        (b"[-" + b"9" * 21 + b"]", "more than 20 digits"),
        (b'{"a": "\\ud800"}', "half a character"),
        (b'{"\\udfff": 1}', "half a character"),
        (b'["\xff"]', "byte 2 is 0xff"),
        ("[]".encode("utf-16"), "not in UTF-8"),
        (b"[[]," + b"{}," * 2_000_000 + b"1]", "more than 2,000,000 lists"),
    ],
)
def test_what_is_no_plain_json_is_refused(path, content, said):
    path.write_bytes(content)
    assert said in refusal(read_json, path)


@pytest.mark.parametrize(
    "content",
    [
        "a: [",
        "!!python/object/apply:os.system [x]",
        "!!bool 2",
        "!!int ''",
        "!!timestamp x",
        "? [a]\n: 1",
        "2001-13-45",
    ],
)
def test_what_is_no_plain_yaml_is_refused(path, content):
    path.write_text(content)
    assert "no YAML" in refusal(read_yaml, path)


def test_yaml_whose_aliases_stand_for_more_is_refused(path):
    lines = ["a0: &a0 [x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    for content in ("\n".join(lines), "a: &a [*a]", "a: &a {b: 1}\nc: {<<: *a}"):
        assert len(content) < 1_000
        path.write_text(content)
        assert "has an alias" in refusal(read_yaml, path)


@pytest.mark.parametrize("read", [read_bytes, read_json, read_yaml])
def test_what_is_no_file_is_refused_at_once(tmp_path, path, read):
    assert "cannot be read (No such file" in refusal(read, path)
    assert "is a folder" in refusal(read, tmp_path)
    os.mkfifo(path)
    assert "a pipe or a device" in refusal(read, path)
    assert "a pipe or a device" in refusal(read, "/dev/zero")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "cannot be read" in refusal(read, tmp_path / "loop")
    assert "cannot be read" in refusal(read, "a\0b")
    assert "cannot be read" in refusal(read, "a" * 5_000)
    assert "\\n" in refusal(read, tmp_path / "two\nlines")
    assert "therefore a path, got None" in refusal(read, None)


def test_a_file_that_is_larger_is_refused_and_read_no_further(path):
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a hole: no disk holds it
    for read in (read_bytes, read_json, read_yaml):
        assert "has more than" in refusal(read, path)
    path.write_text("[1]")
    assert read_json(path, "a list", most_bytes=3) == [1]
    with pytest.raises(DeepCacheError, match="more than 2 bytes"):
        read_json(path, "a list", most_bytes=2)


def test_foreign_values_and_messages_are_short_and_on_one_line():
    assert shown([1, "a"]) == "[1, 'a']"
    assert shown(10**5_000) == "a int that is too large to show"
    assert shown("x" * 10_000).endswith("...")
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(ValueError()) == "ValueError"
