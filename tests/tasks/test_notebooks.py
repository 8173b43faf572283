"""The notebooks of examples/tasks: a task each, run as they are stored, beside its original."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from default_model import store_with
from insula.tasks.by_name import TASKS

nbformat = pytest.importorskip("nbformat", reason="the dev extra is not installed")
nbclient = pytest.importorskip("nbclient", reason="the dev extra is not installed")

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "examples" / "tasks").glob("*.ipynb"))
#: The name by which each task is asked for in its notebook.
ASKED = {"text-classification": "sentiment-analysis"}


@pytest.fixture
def store(default_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("INSULA_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return store_with(default_path)


def code(notebook: Any) -> str:
    return "\n".join(c["source"] for c in notebook.cells if c["cell_type"] == "code")


def shown(cell: Any) -> list[str]:
    """What a reader sees below a cell."""
    found = []
    for output in cell["outputs"]:
        assert output["output_type"] in ("stream", "execute_result"), output
        found.append(output["text"] if "text" in output else output["data"]["text/plain"])
    return found


def test_each_task_has_one() -> None:
    everything = "\n".join(code(nbformat.read(path, as_version=4)) for path in NOTEBOOKS)
    for task in TASKS:
        assert re.search(rf'tasks\("{ASKED.get(task, task)}', everything), task
    assert "timed(" in everything


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_stored_as_run(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    titles = [c["source"].split("\n")[0] for c in notebook.cells if c["cell_type"] == "markdown"]
    assert titles.index("## transformers") < titles.index("## Insula")
    assert titles[-1] == "## What differs"
    cells = [c for c in notebook.cells if c["cell_type"] == "code"]
    assert [c["execution_count"] for c in cells] == list(range(1, len(cells) + 1))
    for cell in cells[1:]:
        assert shown(cell), cell["source"]
    assert not re.search(r"/(home|root|tmp|work|Users)/", path.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "transformers")),
    reason="needs torch and transformers (extra: train)",
)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_says_what_is_stored(path: Path, store: Any) -> None:
    stored = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        nbformat.read(path, as_version=4),
        timeout=240,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
    )
    compared = 0
    for new, old in zip(client.execute().cells, stored.cells, strict=True):
        if new["cell_type"] == "code" and not new["source"].startswith("# seconds"):
            assert "".join(shown(new)) == "".join(shown(old)), (
                "the outputs have changed; if they may, run tools/run_notebooks.py"
            )
            compared += bool(shown(new))
    assert compared >= 2
