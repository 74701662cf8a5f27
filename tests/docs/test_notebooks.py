"""The notebooks run from their first cell to the last, in an empty folder."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

from repsim.models import cache_folder
from repsim.plotting import WIDTHS

ROOT = Path(__file__).parents[2]


def run(notebook: str, folder: Path) -> list[Any]:
    """Runs a notebook in a folder; what its cells show."""
    content = nbformat.read(ROOT / notebook, as_version=4)  # type: ignore[no-untyped-call]
    NotebookClient(content, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in content.cells for output in cell.get("outputs", [])]
    assert not any(output["output_type"] == "error" for output in outputs)
    return outputs


def count_pictures(outputs: list[Any]) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs)


def text_of(outputs: list[Any]) -> str:
    return "".join(output.get("text", "") for output in outputs)


@pytest.mark.slow
def test_from_capture_to_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It captures anew; the converted model is taken from the cache."""
    models = cache_folder().absolute() / "models"
    models.mkdir(parents=True, exist_ok=True)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "models").symlink_to(models)
    monkeypatch.delenv("REPSIM_CACHE", raising=False)
    outputs = run("analyses/explore.ipynb", tmp_path)
    assert count_pictures(outputs) == 5
    assert "baseline           'The capital of France is Paris" in text_of(outputs)
    remarks = "".join(output["text"] for output in outputs if output.get("name") == "stderr")
    assert "samples cut to 64 tokens" in remarks


def test_from_a_model_in_memory_to_a_table_for_the_paper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REPSIM_CACHE", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # tiny tensors
    outputs = run("docs/own-model.ipynb", tmp_path)
    assert count_pictures(outputs) == 2
    # Nothing is written but what the cells name.
    assert {path.name for path in tmp_path.iterdir()} == {"states.zarr", "scores.zarr", "figures"}
    # A table that LaTeX reads, with a row per plan, task and metric.
    _, _, table = text_of(outputs).partition("\\begin{tabular}")
    rows = table.partition("\\midrule\n")[2].partition("\\bottomrule")[0].splitlines()
    assert len(rows) == 3 * 3
    assert all(row.count("&") == 5 and row.endswith("\\\\") for row in rows)
    assert sum("middle-twice" in row for row in rows) == 3
    # The figure as wide as a column.
    (picture,) = (tmp_path / "figures").glob("*.png")
    with Image.open(picture) as image:
        assert image.width == pytest.approx(300 * WIDTHS["column"], abs=1)
