"""docs/tour.ipynb runs: it loads a dataset, trains, loads the policy, imagines and draws."""

import re
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

TOUR = ROOT / "docs" / "tour.ipynb"


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(TOUR, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(TOUR.parent)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [output for output in outputs if "image/jpeg" in output.get("data", {})]
    printed = "".join(output.text for output in outputs if output.get("name") == "stdout")
    assert len(pictures) == 6
    assert "80 episodes" in printed and re.search(r"coworld, at the end +[\d.]+", printed)
    assert list(tmp_path.glob("*/run/checkpoint.pt"))


def test_the_stored_notebook_is_small_and_has_its_pictures():
    """So that it can be read without running it."""
    assert TOUR.stat().st_size < 200_000
    stored = nbformat.read(TOUR, as_version=4)
    nbformat.validate(stored)
    outputs = [output for cell in stored.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/jpeg" in output.get("data", {}) for output in outputs) == 6
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)
