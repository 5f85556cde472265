"""The tables of docs/support.md."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import diffusers

from deepcache.unets.pipelines import COPIERS, READERS, unet_of
from deepcache.unets.registry import classes as unet_classes
from tests.cells import (
    BRANCHES,
    INPUTS,
    NOTHING,
    REFUSED,
    WAYS,
    of_input,
    of_option,
    of_pipeline,
    of_refused,
    of_scheduler,
    of_storage,
    of_unet,
    of_whole,
)
from tests.pipelines import NAMES, OPTIONS, classes, workload
from tests.problems import NAMES as UNETS
from tests.problems import PROBLEMS
from tests.storage import STORAGE
from tests.transformer_pipelines import NAMES as TRANSFORMERS
from tests.transformer_pipelines import WATCHED, whole

DOCUMENT = Path(__file__).parents[1] / "docs" / "support.md"
LOOPS = (  # pipelines on which every scheduler is tried: the others call the U-Net as one of these does
    "text2img",
    "img2img",
    "inpaint",
    "ControlNet",
    "SDXL text2img",
    "SDXL img2img",
    "SVD",
    "AnimateDiff",
    "text-to-video",
    "I2VGen-XL",
    "DDPM",
    "DDIM",
    "LDM",
)


@dataclass(frozen=True)
class Table:
    """Rows by columns of cells.

    Attributes:
        title: the heading.
        text: the paragraph below the heading.
        corner: the heading of the first column.
        rows: the names of the rows; a row of `-` alone is left out.
        columns: the names of the columns.
        cell: runs the cell of a row and a column, and returns its text.
        facts: further columns, whose text follows from the name of a row alone.
        num_tried: how many cells of a row a test runs; None for all.
    """

    title: str
    text: str
    corner: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cell: Callable[[str, str], str]
    facts: Mapping[str, Callable[[str], str]] = field(default_factory=dict)
    num_tried: int | None = None

    def render(self) -> str:
        head = [self.corner, *self.facts, *self.columns]
        lines = [_joined(head), _joined(["---"] * len(head)), *filter(None, map(self.line, self.rows))]
        return f"## {self.title}\n\n{self.text}\n\n" + "\n".join(lines) + "\n"

    def line(self, row: str) -> str | None:
        """Run every cell of a row and return the row as it is printed; None if all cells are `-`."""
        cells = self.cells(row, self.columns)
        return None if set(cells.values()) == {NOTHING} else _joined([row, *self.told(row).values(), *cells.values()])

    def cells(self, row: str, columns: Iterable[str]) -> dict[str, str]:
        """Run cells of a row, and return their texts as they are printed."""
        return {column: _shortened(self.cell(row, column)) for column in columns}

    def told(self, row: str) -> dict[str, str]:
        """Return the facts of a row."""
        return {column: fact(row) for column, fact in self.facts.items()}

    def tried(self) -> dict[str, list[str]]:
        """Return the columns of each row that its test runs.

        They are the first cell that is not `-` on the page, and others in the columns that were tried least so far. A
        row of `-` alone has one.
        """
        page, counts, tried = documented(self.title), Counter[str](), {}
        for row in self.rows:
            cells = page.get(row, {})
            known = [column for column in reversed(self.columns) if cells.get(column, NOTHING) != NOTHING]
            *others, first = known or self.columns[:1]
            tried[row] = [first, *sorted(others, key=counts.__getitem__)][: self.num_tried]
            counts.update(tried[row])
        return tried


def _joined(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _shortened(cell: str) -> str:
    """Shorten a refusal to the first words of its message."""
    return f"{re.split(' [(]|[,;]', cell)[0]} ..." if cell.startswith(REFUSED) else cell


TABLES = (
    Table(
        "U-Nets",
        "Small ones with the blocks of those they are named after. A full step, and a shallow one on the same inputs, "
        "give what `forward` gives.",
        "U-Net",
        UNETS,
        BRANCHES,
        of_unet,
        {"class": lambda name: PROBLEMS[name][0].__name__},
        num_tried=2,
    ),
    Table(
        "Optional inputs",
        "The same at branch 0 for calls with one input more, or in another form.",
        "input",
        tuple(INPUTS),
        tuple(unet_classes()),
        of_input,
        num_tried=2,
    ),
    Table(
        "Pipelines",
        "Interval 1 gives what the pipeline gives without a cache, and with intervals 2 and 3 the mid block runs on "
        "steps 0, N, 2N, ... alone. Guidance that a callback turns off midway shrinks the batch: that step is full, "
        "too. After a generation that was interrupted, the next one is as it would have been.",
        "pipeline",
        NAMES,
        tuple(WAYS),
        of_pipeline,
        {
            "class": lambda name: type(workload(name).pipe).__name__,
            "U-Net": lambda name: type(workload(name).unet).__name__,
        },
        num_tried=2,
    ),
    Table(
        "Transformers, and U-Nets of other classes",
        "At branch -1, where the output is predicted, interval 1 gives what comes without a cache, and at interval 2 "
        "every second step runs nothing. A pipeline's transformer has no other branch. The first call of a U-Net of "
        "another class shows where it can be cut (docs/unets.md); at branch 0 every second step is shallow.",
        "network",
        (*TRANSFORMERS, *WATCHED),
        ("branch -1", "branch 0"),
        of_whole,
        {"class": lambda name: type(unet_of(whole(name)[0])[1]).__name__},
    ),
    Table(
        "Pipelines that are refused",
        "With what `deepcache.cached` says. Pipelines without one of the networks above are refused, too, and so is "
        "unCLIP as a whole: its U-Nets are cached one by one, as the table before shows.",
        "pipeline",
        (*READERS, *COPIERS),
        ("what it says",),
        lambda name, _: of_refused(name),
    ),
    Table(
        "Weights that are offloaded, cast or quantised",
        "A full step of Stable Diffusion's U-Net, and a shallow one on the same inputs, give what `forward` gives. "
        "Group offloading is cached at leaf level without streams; `use_stream=True` is refused as block level is, "
        "since both hook the U-Net itself. Weights quantised by torchao, by optimum-quanto or as GGUF are exact as "
        "well: `tests/unets/test_storage.py` shows that where these packages are installed. Weights quantised by "
        "bitsandbytes need a GPU, and have not been tried.",
        "weights",
        tuple(STORAGE),
        BRANCHES,
        of_storage,
        num_tried=2,
    ),
    Table(
        "Schedulers by pipeline",
        "The same with every scheduler in diffusers that one of the pipelines runs with: a step is a U-Net call.",
        "scheduler",
        tuple(classes()),
        LOOPS,
        of_scheduler,
        num_tried=2,
    ),
    Table(
        "Schedulers by option",
        "The same for text2img, with every option that the scheduler's constructor knows.",
        "scheduler",
        tuple(classes()),
        tuple(OPTIONS),
        of_option,
        num_tried=2,
    ),
)


# `tests/unets/test_families.py` makes this section, since its packages are installed by `tox -e families` alone.
OTHER_PACKAGES = "U-Nets of other packages"


def document() -> str:
    """Return the text of docs/support.md; every cell is run but those of other packages."""
    introduction = f"""# What can be cached

- `exact`: the cut is right. Full steps, and shallow steps with a fresh feature, equal the U-Net bit for bit, as the
  text above each table says. From interval 2 on, a cached image is an approximation of the uncached one all the same.
- `refused: ...`: an `UnsupportedUNetError` that begins so, before the U-Net ran.
- `-`: diffusers itself has no such thing. Without a cache it raises, gives no finite number, or takes no notice.

Every cell was run, on small random models with diffusers {diffusers.__version__}: `tests/cache/test_support.py` makes
this file (`pytest tests/cache/test_support.py --force-regen`). Without this option it runs two cells of each row of
the larger tables, and fails where a cell is no longer what it was.
"""
    return "\n".join([introduction, *(table.render() for table in TABLES), section(OTHER_PACKAGES)])


def section(title: str) -> str:
    """Return a section of the committed page as it stands."""
    _, found = DOCUMENT.read_text().split(f"## {title}\n")
    return f"## {title}\n{found.partition(chr(10) + '## ')[0]}"


@cache
def written() -> dict[str, dict[str, str]]:
    """Return the lines of the committed page by the title of the table and the name of the row."""
    sections = re.findall(r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    return {
        title: {line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines() if line.startswith("| ")}
        for title, text in sections
    }


@cache
def documented(title: str) -> dict[str, dict[str, str]]:
    """Return a table of the committed page: the cells of each row by their columns."""
    head, _, *rows = (line.strip("| ").split(" | ") for line in written()[title].values())
    return {row[0]: dict(zip(head, row, strict=True)) for row in rows}
