"""The package's layers: a file imports from what stands above it, and results know no torch (an exact law)."""

from __future__ import annotations

import ast
from pathlib import Path

import deepcache

ROOT = Path(deepcache.__file__).parent
LAYERS = (  # as CONTRIBUTING.md lists them; the last are programs, which import what they like
    ("errors", "lazy"),
    ("temporary", "files"),
    ("plan",),
    ("plan_text",),
    ("cache/timeline",),
    ("unets",),
    ("cache/prediction",),
    ("costs/macs",),
    ("cache/generation", "cache/steps", "cache/compiling", "cache/installing"),
    ("costs",),
    ("cache",),
    ("compat",),
    ("models",),
    ("sampling",),
    ("metrics",),
    ("search", "costs/macs_report"),
    ("commands", "__main__", "__init__"),
)

TORCHLESS = ("deepcache.metrics.bootstrap", "deepcache.metrics.registry")  # which results may import


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def layer(place: str) -> int:
    matching = {n: i for i, names in enumerate(LAYERS) for n in names if place == n or place.startswith(f"{n}/")}
    assert matching, f"{place} has no layer; give it one here and in CONTRIBUTING.md"
    return matching[max(matching, key=len)]


def test_a_file_imports_from_what_stands_above_it():
    files = [path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0] != "results"]
    for path in files:
        place = path.relative_to(ROOT).with_suffix("").as_posix()
        for name in imports(path):
            if not name.startswith("deepcache."):
                continue
            target = name.removeprefix("deepcache.").replace(".", "/")
            if (ROOT / target).is_dir() or (ROOT / f"{target}.py").exists():
                if target.startswith("results"):
                    assert layer(place) == len(LAYERS) - 1, f"{place} imports {name}"
                else:
                    assert layer(target) <= layer(place), f"{place} imports {name}, which stands below it"


def test_results_import_errors_files_and_two_modules_of_the_metrics_and_no_torch():
    for path in (*(ROOT / "results").rglob("*.py"), ROOT / "metrics/bootstrap.py", ROOT / "metrics/registry.py"):
        for name in imports(path):
            assert not name.startswith(("torch", "diffusers")), f"{path} imports {name}"
            known = ("deepcache.results", "deepcache.errors", "deepcache.files", *TORCHLESS)
            assert not name.startswith("deepcache.") or name.startswith(known), name


def test_no_file_is_long():
    for path in ROOT.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 300, path
