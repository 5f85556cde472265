"""docs/support.md is a snapshot of cells that each ran; `pytest --force-regen` makes the page anew.

Each row is a test of its own, which runs some cells of the row. The other tests check the rest of the page, and that
broken variants of the library fail a cell.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
from diffusers.utils import logging

from deepcache import UnsupportedUNetError
from deepcache.unets.diffusers.forward import full_forward, shallow_forward
from tests.cells import EXACT, NOTHING, of_unet, verdict
from tests.pipelines import workload
from tests.support import DOCUMENT, TABLES, Table, document, documented, written

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),  # of diffusers
    pytest.mark.filterwarnings("ignore:Should have t[ab][<>]=t[01] but got"),  # of torchsde, under a rounded time
]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Silence diffusers, which logs a line about unusual pairs of schedulers and pipelines."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(level)


@pytest.mark.parametrize(
    ("table", "row"), [pytest.param(table, row, id=f"{table.title}-{row}") for table in TABLES for row in table.rows]
)
def test_row_of_the_document_is_what_its_cells_give(table: Table, row: str, request: pytest.FixtureRequest) -> None:
    if request.config.getoption("force_regen"):
        pytest.skip("the document is made anew as a whole")
    expected = documented(table.title).get(row, dict.fromkeys(table.columns, NOTHING))
    found = {**table.told(row), **table.cells(row, table.tried()[row])}
    assert found == {column: expected[column] for column in found}, "see `pytest test_support.py --force-regen`"


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.title)
def test_every_column_is_tried(table: Table) -> None:
    """Test of the test: in each column the tests above run a cell that is not `-`."""
    tried = table.tried()
    assert {column for row in documented(table.title) for column in tried[row]} == set(table.columns)


def test_document_is_its_rows_and_what_stands_around_them(
    file_regression: Any, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if not request.config.getoption("force_regen"):  # else every cell is run here
        monkeypatch.setattr(Table, "line", lambda table, row: written()[table.title].get(row))
    file_regression.check(document(), extension=".md", fullpath=DOCUMENT)


def test_row_of_nothing_is_left_out_and_a_refusal_has_its_first_words() -> None:
    cells = {"a": EXACT, "b": NOTHING, "c": "refused: expected this (or that), got another"}
    table = Table("Title", "Text.", "row", tuple(cells), ("column",), lambda row, _: cells[row], {"fact": str.upper})
    assert table.render().splitlines()[4:] == [
        "| row | fact | column |",
        "| --- | --- | --- |",
        "| a | A | exact |",
        "| c | C | refused: expected this ... |",
    ]


def test_full_step_that_is_a_little_off_fails_a_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test of the test, like all tests below."""

    def off(*args: Any, **kwargs: Any) -> Any:
        output, feature = full_forward(*args, **kwargs)
        return (output[0] + 1e-6,), feature

    monkeypatch.setattr("deepcache.unets.diffusers.forward.full_forward", off)
    with pytest.raises(AssertionError, match="interval 1 differs from uncached"):
        verdict(workload("text2img"))
    with pytest.raises(AssertionError, match="a full step differs from forward"):
        of_unet("bk-sdm-tiny", "branch 0")


def test_shallow_step_that_is_a_little_off_fails_a_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    def off(*args: Any, **kwargs: Any) -> Any:
        return (shallow_forward(*args, **kwargs)[0] + 1e-6,)

    monkeypatch.setattr("deepcache.unets.diffusers.forward.shallow_forward", off)
    with pytest.raises(AssertionError, match="a shallow step differs from forward"):
        of_unet("bk-sdm-tiny", "branch 0")


@pytest.mark.parametrize("always", [True, False])
def test_plan_that_is_not_followed_fails_a_cell(monkeypatch: pytest.MonkeyPatch, always: bool) -> None:  # noqa: FBT001
    monkeypatch.setattr("deepcache.plan.Interval.is_full", lambda *_: always)
    with pytest.raises(AssertionError, match=r"interval (1 differs|2 the mid block ran)"):
        verdict(workload("text2img"))


def test_refusal_after_the_unet_ran_fails_a_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(*args: Any, **kwargs: Any) -> Any:
        full_forward(*args, **kwargs)
        raise UnsupportedUNetError("too late")

    monkeypatch.setattr("deepcache.unets.diffusers.forward.full_forward", late)
    for cell in (lambda: verdict(workload("text2img")), lambda: of_unet("bk-sdm-tiny", "branch 0")):
        with pytest.raises(AssertionError, match="refused after the U-Net ran"):
            cell()


def test_foreign_unet_that_is_taken_fails_a_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.cells.cached", lambda *_, **__: nullcontext())
    with pytest.raises(AssertionError, match="UNet1DModel is of no known family, and was not refused"):
        of_unet("UNet1DModel", "branch 0")
