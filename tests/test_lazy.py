"""A lazy name is the attribute of its home module, whatever was imported before (exact, in a new interpreter)."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import deepcache

ROOT = Path(deepcache.__file__).parent
PACKAGES = sorted(
    ".".join(("deepcache", *path.parent.relative_to(ROOT).parts))
    for path in ROOT.rglob("__init__.py")
    if "lazy(" in path.read_text()
)
ORDERS = """
import json, pickle, pkgutil, sys
from importlib import import_module

packages = json.loads(sys.argv[1])  # of each, its names and what they are imported from


def fresh(package):
    for name in [name for name in sys.modules if name.partition(".")[0] == "deepcache"]:
        del sys.modules[name]
    return import_module(package)


def submodules(module):
    found = [info.name for info in pkgutil.iter_modules(module.__path__, f"{module.__name__}.")]
    return [name for name in found if name.rpartition(".")[2] not in ("__main__", "train")]  # programs


def check(module, name, home):
    for _ in range(2):
        found = getattr(module, name)
        at_home = import_module(home)
        expected = import_module(f"{home}.{name}") if home == module.__name__ else getattr(at_home, name)
        assert found is expected, f"{module.__name__}.{name} is {found}"


for package, homes in packages.items():
    names = [(check, (name, home)) for name, home in homes.items()]
    imports = [(lambda module, name: import_module(name), (name,)) for name in submodules(fresh(package))]
    first = [*imports, *names]
    for order in (first, first[::-1]):
        module = fresh(package)
        for act, given in [*order, *names]:
            act(module, *given)
    found = {}
    module = fresh(package)
    exec(f"from {package} import *", found)
    assert {name for name in found if name != "__builtins__"} == set(module.__all__) == set(homes)
    assert {"__name__", "__all__", "__doc__", *homes} <= set(dir(module))
    for name in homes:
        check(module, name, homes[name])
        if callable(getattr(module, name)):
            assert pickle.loads(pickle.dumps(getattr(module, name))) is getattr(module, name), name
"""


def typed(package: str) -> dict[str, str]:
    """Return the names of a package and their home modules, as its imports for type checkers state them."""
    path = ROOT.joinpath(*package.split(".")[1:], "__init__.py")
    (block,) = (node for node in ast.parse(path.read_text()).body if isinstance(node, ast.If))
    return {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}


def test_lazy_name_is_that_of_its_home_module_twice_in_any_order_of_imports() -> None:
    """The oracle is the import statements that type checkers see."""
    given = json.dumps({package: typed(package) for package in PACKAGES})
    done = subprocess.run([sys.executable, "-c", ORDERS, given], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", PACKAGES)
def test_no_lazy_name_is_that_of_a_submodule_with_another_meaning(package: str) -> None:
    """Python would bind the submodule or the folder under the name."""
    folder = ROOT.joinpath(*package.split(".")[1:])
    below = {path.stem for path in folder.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert not below & {name for name, home in typed(package).items() if home != package}


def test_name_that_a_package_does_not_have_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"module 'deepcache\.models' has no attribute 'recommend'"):
        _ = deepcache.models.recommend
