"""The notebook of `examples/` runs from beginning to end."""

from pathlib import Path

import nbformat
import pytest
from drive import Run
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "examples" / "embeddings.ipynb"


def test_the_notebook_runs(trained: Run, sounds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEAS_CHECKPOINT", str(trained.folder))
    monkeypatch.setenv("PEAS_SOUNDS", str(sounds))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "it is committed without output"
    NotebookClient(
        notebook, timeout=240, resources={"metadata": {"path": NOTEBOOK.parent}}
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    kinds = [kind for output in outputs for kind in output.get("data", {})]
    assert kinds.count("image/png") == 3, "a map, frames, and what PEAS sees"
    assert (
        sum(
            "<audio" in output["data"].get("text/html", "")
            for output in outputs
            if "data" in output
        )
        == 4
    )
