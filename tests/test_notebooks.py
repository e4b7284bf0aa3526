"""The notebooks run from top to bottom, and say what is stored in them.

    python tests/test_notebooks.py notebooks/01_straight_line.ipynb

runs notebooks anew and stores their outputs, without what is heavy or of one machine.
"""

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
QUIET = {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1", "PLOTLY_RENDERER": "plotly_mimetype"}
"""Set where notebooks are run: figures are data and no pages, so that they weigh little."""
VERDICT = re.compile(r"\b(?:NOT_REMOVED|REMOVED|SUPPRESSED|DEGRADED|INCONCLUSIVE)\b")
OF_A_MACHINE = re.compile(
    r"(?:^|[\s\"'(=])(?:/[\w.-]+){2,}/?|[A-Z]:\\|0x[0-9a-f]{8,}", re.MULTILINE
)
MOST_BYTES = 200_000
WIDGET = "application/vnd.jupyter.widget-view+json"


def run(path: Path, folder: Path) -> Any:
    """The notebook as a fresh kernel leaves it, run in a folder with the Python files beside it.

    Raises:
        CellExecutionError: a cell failed.
    """
    for file in path.parent.glob("*.py"):
        shutil.copy(file, folder)
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        timeout=1800,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        coalesce_streams=True,
    ).execute()
    return notebook


def code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def said(cell: Any, stream: str = "stdout") -> str:
    """What a cell printed and, for `stdout`, the text of what it showed."""
    texts = [o.text for o in cell.outputs if o.get("name") == stream]
    if stream == "stdout":
        texts += [o.data.get("text/plain", "") for o in kept(cell) if "data" in o]
    return "\n".join(texts)


def kept(cell: Any) -> list[Any]:
    """Outputs without warnings and without progress bars, which may be widgets."""
    shown = [o for o in cell.outputs if o.get("name") != "stderr"]
    return [o for o in shown if WIDGET not in o.get("data", ())]


def kinds(cell: Any) -> list[str]:
    """Of each output that is kept, what it is: text, a table, a figure."""
    return ["+".join(sorted(o.data)) if "data" in o else o.output_type for o in kept(cell)]


def lightened(notebook: Any) -> Any:
    """With the outputs that are kept alone, and nothing that changes from run to run."""
    for cell in code(notebook):
        cell.outputs = kept(cell)
        cell.metadata = {}
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def test_there_is_a_notebook_of_each_number() -> None:
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{n:02}" for n in range(1, 9)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_light_and_stored_with_its_outputs(path: Path) -> None:
    assert path.stat().st_size < MOST_BYTES
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert [cell.execution_count for cell in code(notebook)] == [
        i + 1 for i in range(len(code(notebook)))
    ]
    for before, cell in zip(notebook.cells, notebook.cells[1:], strict=False):
        assert cell.cell_type != "code" or before.cell_type == "markdown", cell.source
    for cell in code(notebook):
        assert not said(cell, "stderr")
        assert not OF_A_MACHINE.findall(said(cell)), said(cell)
        assert not OF_A_MACHINE.findall(cell.source), cell.source


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_says_what_is_stored(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)
    stored, now = code(nbformat.read(path, as_version=4)), code(run(path, tmp_path))
    for before, cell in zip(stored, now, strict=True):
        assert kinds(cell) == kinds(before), cell.source
        assert VERDICT.findall(said(cell)) == VERDICT.findall(said(before)), cell.source
        # Where no widgets are installed, tqdm says so; it concerns how a bar is drawn.
        warned = re.findall(r"\w*Warning\b.*", said(cell, "stderr"))
        assert all(w.startswith("TqdmWarning") for w in warned), warned


def main(paths: list[Path]) -> None:
    os.environ.update(QUIET)
    for path in paths:
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(lightened(run(path, Path(folder))), path)


if __name__ == "__main__":
    main([Path(path) for path in sys.argv[1:]] or NOTEBOOKS)
