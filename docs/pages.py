"""A hook of mkdocs: pages made of the repository's own files, so that nothing stands in two places.

The README, the changelog and CONTRIBUTING become pages; so do the committed results of each experiment, the cards of
the embedded models, the public names, and the help of each command. Links to files of the repository become links to
their pages; a link to a file without a page becomes the file's name.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from posixpath import normpath, relpath
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
RESULTS = "bench/results"
EXPERIMENTS = tomllib.loads((ROOT / "docs" / "experiments.toml").read_text())
PUBLIC = ("deepcache", "deepcache.models", "deepcache.compat")
PLAIN = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
CARDS = sorted(path.parent.name for path in (ROOT / "deepcache/models/weights").glob("*/README.md"))
LONG = 24  # lines of a table that scrolls by itself
_OVERVIEW = """# Experiments

Every table and figure of the paper, of its course-project extension and beyond is a pytest benchmark. The pages here
are made of the committed results. `python3 -m tox -e bench` measures nearly all of them anew, in minutes, on the
embedded models, and ends with one page, `report.html`; [the gate](../gate.md) tells when they get worse.

| experiment | its question |
| --- | --- |
"""
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_FENCE = re.compile(r"(^```.*?^```$|^    \S[^\n]*$)", re.MULTILINE | re.DOTALL)


def pages() -> dict[str, str]:
    """Return the pages that files of the repository become, by the files' paths."""
    found = {**PLAIN, **{f"deepcache/models/weights/{name}/README.md": f"models/{name}.md" for name in CARDS}}
    found |= {f"{RESULTS}/{each['folder']}/{name}.md": f"experiments/{name}.md" for name, each in EXPERIMENTS.items()}
    found[f"{RESULTS}/gate/README.md"] = "experiments/gate.md"
    found[f"{RESULTS}/bench"] = "experiments/index.md"
    return found | {path.relative_to(ROOT).as_posix(): path.name for path in (ROOT / "docs").glob("*.*")}


PAGES = pages()
SOURCES = {page: source for source, page in PAGES.items()}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the experiments and the cards, which have no files of their own here, into the navigation."""
    experiments = ["experiments/index.md", *(f"experiments/{name}.md" for name in EXPERIMENTS), "experiments/gate.md"]
    made = {"Experiments": experiments, "Models": ["models.md", *(f"models/{name}.md" for name in CARDS)]}
    for entry in config.nav or []:
        entry.update({name: made[name] for name in entry if name in made})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made, and the pictures of results and cards."""
    made = {page: ROOT / source for source, page in PAGES.items() if not source.startswith("docs/")}
    texts = {page: path.read_text() for page, path in made.items() if path.is_file()}
    texts |= {f"experiments/{name}.md": experiment(name, **each) for name, each in EXPERIMENTS.items()}
    texts |= {
        "experiments/index.md": overview(),
        "api.md": "".join(reference()),
        "command_line.md": "".join(commands()),
    }
    for page, text in texts.items():
        files.append(File.generated(config, page, content=text))
    for folder, there in ((RESULTS, "results"), ("deepcache/models/weights", "models")):
        for path in sorted((ROOT / folder).glob("*/*.png")):
            name = f"{there}/{path.relative_to(ROOT / folder).as_posix()}"
            PAGES[path.relative_to(ROOT).as_posix()] = name
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_nav(nav: Navigation, config: MkDocsConfig, files: Files) -> Navigation:  # noqa: ARG001 (mkdocs' names)
    """Refuse a site in which a public name lacks its docstring."""
    missing = sorted(undocumented())
    if missing:
        raise PluginError(f"expected a docstring of every public name, found none of {', '.join(missing)}")
    return nav


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Turn links to files of the repository into links to their pages, outside code."""
    here = page.file.src_uri
    source = SOURCES.get(here, f"docs/{here}")

    def link(found: re.Match[str]) -> str:
        picture, text, target = found.groups()
        path, _, anchor = target.partition("#")
        if "://" in target or not path:
            return found[0]
        file = normpath(f"{os.path.dirname(source)}/{path}").lstrip("/")
        if file in PAGES:
            return (
                f"{picture}[{text}]({relpath(PAGES[file], os.path.dirname(here) or '.')}{'#' * bool(anchor)}{anchor})"
            )
        if picture or not (ROOT / file).exists() or file.startswith("docs/"):
            return found[0]
        return text if text.startswith("`") else f"{text} (`{file}`)" if text != file else f"`{file}`"

    parts = _FENCE.split(markdown)
    return "".join(part if i % 2 else _LINK.sub(link, part) for i, part in enumerate(parts))


def experiment(name: str, **said: Any) -> str:
    """Return the page of an experiment: question, command, table, pictures, how to read them, what they do not say."""
    place = ROOT / RESULTS / said["folder"]
    heading, *lines = (place / f"{name}.md").read_text().strip().splitlines()
    table = [line for line in lines if line.startswith("|")]
    is_long = len(table) > LONG
    parts = [
        "---\nhide: [toc]\n---",
        f"# {said['title']}",
        f'<p class="question" markdown>{said["question"]}</p>',
        f"```\n{said['command']}\n```",
        f"## {heading.removeprefix('### ')}",
        f'<div class="results{" long" * is_long}" markdown>',
        "\n".join(table),
        "</div>",
    ]
    for pattern in said.get("pictures", ()):
        pictures = sorted(place.glob(pattern))
        named = [(path.stem, path.resolve().relative_to(ROOT / RESULTS).as_posix()) for path in pictures]
        parts += [
            f"[![{stem}](../results/{there}){{ loading=lazy }}](../results/{there})\n\n*{stem}*"
            for stem, there in named
        ]
    parts += ["## How to read it", "\n".join(f"- {line}" for line in said["reading"])]
    parts += ["## What it does not say", said["silent"]]
    parts += ["## Settings", "\n".join(line for line in lines if line.startswith("- "))]
    return "\n\n".join(parts) + "\n"


def overview() -> str:
    """Return the list of all experiments with their questions."""
    rows = [f"| [{each['title']}]({name}.md) | {each['question']} |" for name, each in EXPERIMENTS.items()]
    rows.append("| [What the gate catches](gate.md) | Does the gate notice what is broken, and only that? |")
    return _OVERVIEW + "\n".join(rows) + "\n"


def names(module: str) -> list[str]:
    """Return the public names of a module: those of its `__all__`, or without one, of its classes and functions."""
    path = ROOT / module.replace(".", "/")
    text = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
    body = ast.parse(text).body
    for node in body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return list(ast.literal_eval(node.value))
    return [node.name for node in body if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name[0] != "_"]


def reference() -> Iterator[str]:
    """Yield the page of the public names."""
    yield "# API reference\n\nEverything else is private and may change.\n"
    for module in PUBLIC:
        yield f"\n## {module}\n"
        for name in names(module):
            if f"{module}.{name}" not in PUBLIC:
                yield f"\n::: {module}.{name}\n"


def undocumented() -> Iterator[str]:
    """Yield the public names, and their public members, that have no docstring; plain fields need none."""
    package = griffe.load("deepcache", search_paths=[str(ROOT)])
    for module in PUBLIC:
        for name in names(module):
            found = package[f"{module}.{name}".removeprefix("deepcache.")]
            found = found.final_target if found.is_alias else found
            if not found.has_docstring and not found.is_attribute:
                yield f"{module}.{name}"
            for member in found.members.values() if found.is_class else ():
                is_field = member.is_attribute and "property" not in member.labels
                if not (member.name.startswith("_") or is_field or member.has_docstring):
                    yield f"{module}.{name}.{member.name}"


def commands() -> Iterator[str]:
    """Yield the page of the command line, from the help of each command."""
    os.environ["COLUMNS"] = "100"  # the width of the help
    sys.path.insert(0, str(ROOT))
    from deepcache.__main__ import parser

    whole = parser()
    yield f"# Command line\n\n```\n{whole.format_help()}```\n"
    subparsers = next(each for each in whole._actions if isinstance(each, argparse._SubParsersAction))
    for name, command in subparsers.choices.items():
        yield f"\n## {name}\n\n```\n{command.format_help()}```\n"
