"""`Llama.from_pretrained` from a hub on the loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hub_server import HubServer
from insula.compat.llama_cpp import Llama
from split_model import split

REPO = "owner/tiny-GGUF"


@pytest.fixture
def hub(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    for name in ("HF_TOKEN", "HF_HOME", "HF_HUB_OFFLINE", "INSULA_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("INSULA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("NO_PROXY", "*")
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        data = tiny_model.read_bytes()
        server.add(REPO, {"tiny-F32.gguf": data, "tiny-Q8_0.gguf": data[:100]})
        yield server


def load(filename: str | None, **options: Any) -> Llama:
    return Llama.from_pretrained(REPO, filename, n_ctx=64, verbose=False, **options)


def test_a_pattern_or_a_name(hub: HubServer) -> None:
    with load("*F32.gguf") as fetched:
        answer: Any = fetched("hello", max_tokens=3, temperature=0)
    with load("tiny-F32.gguf") as here:
        assert here.model_path == fetched.model_path
        assert here("hello", max_tokens=3, temperature=0)["choices"] == answer["choices"]  # type: ignore[index]


def test_a_file_that_is_here_needs_no_hub(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    load("tiny-F32.gguf").close()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with load("tiny-F32.gguf") as model:
        assert model.n_vocab() == 320


def test_a_folder_of_ones_own(hub: HubServer, tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "models"
    with load("*F32*", local_dir=folder) as model:
        assert Path(model.model_path) == folder / "tiny-F32.gguf"
    with load("*F32*", local_dir=folder) as again:
        assert again.n_ctx() == 64


@pytest.mark.parametrize(
    ("filename", "message"),
    [
        ("*Q4_K_M.gguf", "No file found in owner/tiny-GGUF that match .*tiny-F32"),
        ("*.gguf", "Multiple files found"),
        (None, "filename"),
    ],
)
def test_none_or_several(hub: HubServer, filename: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(filename)


def test_what_is_not_here(hub: HubServer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="come with its first one"):
        load("*F32*", additional_files=["b.gguf"])
    with pytest.raises(ValueError, match="owner/none"):
        Llama.from_pretrained("owner/none", "*.gguf")
    with pytest.warns(UserWarning, match="cache_dir has no effect"):
        load("*F32*", cache_dir=str(tmp_path)).close()


def test_a_split_model_comes_whole(hub: HubServer, tiny_model: Path, tmp_path: Path) -> None:
    files = split(tiny_model, tmp_path / "parts", 2, base="tiny-Q4_K_M")
    hub.add(REPO, {path.name: path.read_bytes() for path in files})
    folder = tmp_path / "mine"
    with load("*Q4_K_M*", local_dir=folder) as model, Llama(str(tiny_model), n_ctx=64) as whole:
        assert sorted(path.name for path in folder.iterdir()) == [path.name for path in files]
        answers: Any = [m("hello", max_tokens=3, temperature=0) for m in (model, whole)]
    assert answers[0]["choices"] == answers[1]["choices"]
