from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from repsim.models import cache_folder

NOTEBOOK = Path(__file__).parents[2] / "analyses" / "explore.ipynb"


@pytest.mark.slow
def test_the_notebook_runs_from_capture_to_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an empty folder, so that it captures anew; the converted model is taken from the cache."""
    models = cache_folder().absolute() / "models"
    models.mkdir(parents=True, exist_ok=True)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "models").symlink_to(models)
    monkeypatch.delenv("REPSIM_CACHE", raising=False)
    notebook = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 5
    said = "".join(output.get("text", "") for output in outputs)
    assert "baseline           'The capital of France is Paris" in said
    remarks = "".join(output["text"] for output in outputs if output.get("name") == "stderr")
    assert "corpus builtin: 14 samples cut to 64 tokens" in remarks
    assert not any(output["output_type"] == "error" for output in outputs)
