"""Executes the notebooks of examples/ in place, so that their outputs are those of a real run.

    python tools/run_notebooks.py [NOTEBOOK …]

Keeps what a reader sees and drops what changes from run to run: times, the kernel's version.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbclient
import nbformat

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run(path: Path) -> None:
    """Execute one notebook and write it back."""
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.resolve().parent)}},  # where it imports from
    ).execute()
    for number, cell in enumerate(c for c in notebook.cells if c["cell_type"] == "code"):
        cell["metadata"] = {}
        cell["execution_count"] = number + 1
        cell["outputs"] = joined(cell["outputs"])
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nbformat.write(notebook, path)


def joined(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Outputs with the pieces of each stream in one."""
    kept: list[nbformat.NotebookNode] = []
    for output in outputs:
        if kept and output["output_type"] == "stream" == kept[-1]["output_type"]:
            kept[-1]["text"] += output["text"]
        else:
            kept.append(output)
    return kept


if __name__ == "__main__":
    for name in [Path(a) for a in sys.argv[1:]] or sorted(EXAMPLES.rglob("*.ipynb")):
        run(name)
        print(name)
