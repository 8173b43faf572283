"""The course notebook runs from top to bottom, and greedy cells print what is stored in it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from default_model import store_with
from insula.hub.store import ModelStore

nbformat = pytest.importorskip("nbformat", reason="the dev extra is not installed")
nbclient = pytest.importorskip("nbclient", reason="the dev extra is not installed")

PATH = Path(__file__).resolve().parents[2] / "examples" / "01_gpt4all.ipynb"
#: Cells that draw at random print something else each time.
RANDOM = re.compile(r"temp=temp|temp=1\.0")


@pytest.fixture
def store(default_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelStore:
    """A store that has the default model, as after `insula pull`."""
    monkeypatch.setenv("INSULA_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return store_with(default_model)


@pytest.fixture
def executed(store: ModelStore) -> Any:
    notebook = nbformat.read(PATH, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=110, kernel_name="python3")
    return client.execute()


def printed(cell: Any) -> str:
    return "".join(o["text"] for o in cell["outputs"] if o["output_type"] == "stream")


def test_it_runs_and_says_what_is_stored(executed: Any) -> None:
    stored = nbformat.read(PATH, as_version=4)
    assert len(executed.cells) == len(stored.cells)
    compared = 0
    for new, old in zip(executed.cells, stored.cells, strict=True):
        if new["cell_type"] != "code" or RANDOM.search(new["source"]):
            continue
        assert printed(new) == printed(old), (
            "the words have changed; if they may, run tools/run_notebooks.py"
        )
        compared += bool(printed(new))
    assert compared >= 6


def test_only_import_and_name_differ_from_gpt4all() -> None:
    """Every other line is one that gpt4all's users have."""
    stored = nbformat.read(PATH, as_version=4)
    code = "\n".join(c["source"] for c in stored.cells if c["cell_type"] == "code")
    ours = [line for line in code.splitlines() if "insula" in line or "smollm2" in line]
    assert ours == [
        "from insula.compat.gpt4all import GPT4All",
        'model = GPT4All("smollm2:135m", n_ctx=2048)',
    ]
    for option in (
        "max_tokens", "temp", "top_k", "top_p", "repeat_penalty", "repeat_last_n", "n_batch",
        "streaming", "chat_session",
    ):  # fmt: skip
        assert re.search(rf"\b{option}\b", code), option


def test_the_stored_outputs_name_no_place_on_a_machine() -> None:
    text = PATH.read_text(encoding="utf-8")
    assert not re.search(r"/(home|root|tmp|work|Users)/", text)
