"""The notebook runs from top to bottom on an embedded model, and shows what it promises."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "first_look.ipynb"
nbclient = pytest.importorskip("nbclient", reason="needs the package nbclient")
nbformat = pytest.importorskip("nbformat", reason="needs the package nbformat")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(NOTEBOOK.parents[1]), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # outputs are not committed
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    said = "".join(output.get("text", "") for output in outputs)
    assert "full steps: (0, 3, 6, " in said
    assert "the best found of at least 2 times fewer MACs" in said
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert (tmp_path / "plan.json").is_file()
