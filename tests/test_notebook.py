"""The notebook of the documentation runs from top to bottom."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import ENVIRONMENT, ROOT

NOTEBOOK = ROOT / "docs" / "continue.ipynb"


@pytest.mark.slow
def test_the_notebook_runs_and_plays_what_it_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells), "strip the outputs before committing"
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in cells for output in cell.outputs]
    (shape,) = (output["data"]["text/plain"] for output in outputs if output["output_type"] == "execute_result")
    assert shape == "torch.Size([2, 1, 48000])"
    assert sum("<audio" in output.get("data", {}).get("text/html", "") for output in outputs) == 2
