"""The package's rooms: imports go one way, results know no torch, and files stay short (exact laws)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import deepcache

ROOT = Path(deepcache.__file__).parent
LAYERS = (  # a file imports from its own layer and from those before it; the last layer may import everything
    ("errors", "lazy"),
    ("files",),
    ("plan",),
    ("unets",),
    ("cache",),
    ("costs",),
    ("compat",),
    ("models",),
    ("sampling",),
    ("metrics",),
    ("search",),
    ("commands", "__main__", "__init__"),
)
# These import from a later layer within a function or for type checkers, so that sampling does without.
DEFERRED = {("cache/caching", "costs/explain"), ("cache/generation", "costs/macs")}
TORCHLESS = ("metrics/registry", "metrics/statistics")  # modules of the metrics that results may import
RESULTS_KNOW = ("results", "errors", "files", *TORCHLESS)
FAMILIES = ("unets/diffusers", "unets/watched")  # implementations behind the seam of `deepcache/unets/family.py`
MOST_LINES_A_FILE = 350
# 11,000; 500 for idle steps, 1,250 for U-Nets of any class, 450 for the first look, 50 for noisy solvers, 150 for calls
# whose image, guidance or step the owner does not tell
MOST_FILES, MOST_LINES = 100, 13_400


@cache
def files() -> dict[str, Path]:
    """All files of the package by their place in it."""
    return {path.relative_to(ROOT).with_suffix("").as_posix(): path for path in ROOT.rglob("*.py")}


def names(tree: ast.AST) -> Iterator[str]:
    """The modules, and the names in them, that a piece of code imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from (str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names))
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def places(code: ast.AST) -> set[str]:
    """The files of the package that a piece of code imports."""
    own = {name for name in names(code) if name.startswith("deepcache.")}
    targets = {name.removeprefix("deepcache.").replace(".", "/") for name in own}
    return {place for target in targets for place in (target, f"{target}/__init__") if place in files()}


@cache
def imports(place: str) -> set[str]:
    """The files that a file imports, also within its functions."""
    return places(ast.parse(files()[place].read_text()))


def imports_at_once(place: str) -> set[str]:
    """The files that a file imports when it is imported itself: not in functions, nor for type checkers alone."""
    body = ast.parse(files()[place].read_text()).body
    return set().union(*(places(node) for node in body if isinstance(node, (ast.Import, ast.ImportFrom, ast.Try))))


def is_in(place: str, room: str) -> bool:
    return place == room or place.startswith(f"{room}/")


def layer(place: str) -> int:
    matching = [i for i, rooms in enumerate(LAYERS) if any(is_in(place, room) for room in rooms)]
    assert matching, f"{place} has no layer; give it one here and in CONTRIBUTING.md"
    return matching[0]


def test_a_file_imports_from_its_own_layer_and_those_before_it() -> None:
    upward = {
        (place, target)
        for place in files()
        for target in imports(place)
        if not is_in(place, "results") and not is_in(target, "results") and layer(target) > layer(place)
    }
    assert upward == DEFERRED


def test_commands_alone_import_results() -> None:
    places = {place for place in files() for target in imports(place) if is_in(target, "results")}
    assert all(is_in(place, "results") or layer(place) == len(LAYERS) - 1 for place in places)


def test_results_import_errors_files_and_two_modules_of_the_metrics_and_no_torch() -> None:
    for place, path in files().items():
        if is_in(place, "results") or place in TORCHLESS:
            assert not any(name.split(".")[0] in ("torch", "diffusers") for name in names(ast.parse(path.read_text())))
            assert all(any(is_in(target, room) for room in RESULTS_KNOW) for target in imports(place)), place


def test_the_seam_for_unets_alone_knows_its_families() -> None:
    """Another family of U-Nets is one new file, and a line in the registry."""
    for family in FAMILIES:
        users = {place for place in files() if not is_in(place, family)}
        assert {place for place in users if any(is_in(name, family) for name in imports(place))} == {"unets/registry"}


def test_imports_make_no_circle() -> None:
    TopologicalSorter({place: imports_at_once(place) for place in files()}).prepare()


def test_a_circle_of_imports_is_found() -> None:
    """Test of the test."""
    graph = {place: imports_at_once(place) for place in files()}
    graph["unets/calls"] |= {"unets/registry"}
    with pytest.raises(CycleError):
        TopologicalSorter(graph).prepare()


def test_the_package_is_small() -> None:
    assert len(files()) <= MOST_FILES
    assert sum(len(path.read_text().splitlines()) for path in files().values()) <= MOST_LINES


def test_no_file_is_long() -> None:
    lengths = {place: len(path.read_text().splitlines()) for place, path in files().items()}
    assert not {place: number for place, number in lengths.items() if number > MOST_LINES_A_FILE}


def test_sampling_does_without_the_costs() -> None:
    """Importing the cache imports nothing of `deepcache/costs`."""
    reached, found = {"cache/caching"}, set[str]()
    while reached:
        found |= reached
        reached = {target for place in reached for target in imports_at_once(place)} - found
    assert "unets/structure" in found
    assert not any(is_in(place, "costs") for place in found)
