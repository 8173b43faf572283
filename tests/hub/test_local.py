"""Models that other programs keep here are found and used where they lie."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from insula.errors import ConfigError, NotFoundError
from insula.hub import local
from insula.hub.resolve import locate, resolve
from insula.hub.store import ModelStore

GGUF = b"GGUF\x03\0\0\0rest"


def write(path: Path, data: bytes = GGUF) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def ollama(folder: Path, name: str, digest: str, **layer) -> None:
    layers = [
        {"mediaType": "application/vnd.ollama.image.license", "digest": "sha256:" + "f" * 64},
        {"mediaType": "application/vnd.ollama.image.model", "digest": digest, **layer},
    ]
    write(folder / "manifests" / name, json.dumps({"layers": layers}).encode())


def names() -> list[str]:
    return [model.name for model in local.find_models()]


@pytest.fixture
def user(tmp_path) -> Path:
    return tmp_path / "user"


def test_an_empty_machine(user):
    assert names() == []


def test_ollama(user):
    models = user / ".ollama" / "models"
    blob = write(models / "blobs" / f"sha256-{'a' * 64}")
    ollama(models, "registry.ollama.ai/library/llama3.2/1b", "sha256:" + "a" * 64)
    ollama(models, "registry.ollama.ai/someone/theirs/latest", "sha256:" + "a" * 64)
    ollama(models, "hf.co/o/r/Q4_K_M", "sha256:" + "a" * 64)
    ollama(models, "registry.ollama.ai/library/gone/1b", "sha256:" + "b" * 64)
    assert sorted(names()) == [
        "ollama/hf.co/o/r:Q4_K_M",
        "ollama/llama3.2:1b",
        "ollama/someone/theirs:latest",
    ]
    assert resolve("ollama/llama3.2:1b") == blob
    assert locate("ollama/llama3.2:1b").program == "ollama"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"layers":{}}',
        b'{"layers":[{"mediaType":"application/vnd.ollama.image.model","digest":"sha256:../../x"}]}',
        b'{"layers":[1]}',
        b"[" * 100_000,
    ],
)
def test_ollama_manifests_are_not_trusted(user, content):
    write(user / ".ollama/models/manifests/registry.ollama.ai/library/x/1", content)
    assert names() == []


def test_lmstudio_gpt4all_llamacpp(user, tmp_path, monkeypatch):
    write(user / ".lmstudio/models/pub/repo/m-Q4_K_M.gguf")
    write(user / ".cache/gpt4all/orca.gguf")
    write(user / ".cache/llama.cpp/ggml-org_m.gguf")
    write(user / ".cache/llama.cpp/ggml-org_m.gguf.json", b"{}")
    if sys.platform == "linux":
        write(user / ".local/share/nomic.ai/GPT4All/phi.gguf")
        assert names() == [
            "lmstudio/pub/repo/m-Q4_K_M.gguf",
            "gpt4all/phi.gguf",
            "gpt4all/orca.gguf",
            "llamacpp/ggml-org_m.gguf",
        ]
    assert resolve("lmstudio/pub/repo/m-Q4_K_M.gguf").read_bytes() == GGUF


@pytest.mark.parametrize(
    ("variable", "program"),
    [
        ("LMSTUDIO_MODELS", "lmstudio"),
        ("GPT4ALL_MODELS", "gpt4all"),
        ("LLAMA_CACHE", "llamacpp"),
        ("INSULA_MODELS", "folder"),
    ],
)
def test_each_programs_variable_moves_its_folder(tmp_path, monkeypatch, variable, program):
    write(tmp_path / "there" / "m.gguf")
    monkeypatch.setenv(variable, str(tmp_path / "there"))
    assert names() == [f"{program}/m.gguf"]


def test_the_hub_cache_with_its_links(user):
    repo = user / ".cache/huggingface/hub/models--o--r-GGUF"
    blob = write(repo / "blobs" / "abc")
    for commit in ("old", "new"):
        link = repo / "snapshots" / commit / "m-Q8_0.gguf"
        link.parent.mkdir(parents=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    assert names() == ["huggingface/o/r-GGUF/m-Q8_0.gguf"]
    assert resolve("huggingface/o/r-GGUF/m-Q8_0.gguf").read_bytes() == GGUF


def test_only_gguf_files_and_only_first_parts(tmp_path, monkeypatch):
    folder = tmp_path / "there"
    write(folder / "real.gguf")
    write(folder / "fake.gguf", b"PK\x03\x04")
    write(folder / "empty.gguf", b"")
    write(folder / "other.bin")
    write(folder / "big-00001-of-00002.gguf")
    write(folder / "big-00002-of-00002.gguf")
    (folder / "folder.gguf").mkdir()
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe.gguf")  # opening it would wait for ever
    (folder / "dangling.gguf").symlink_to(folder / "nowhere")
    (folder / "loop").symlink_to(folder)
    monkeypatch.setenv("INSULA_MODELS", str(folder))
    assert names() == ["folder/big-00001-of-00002.gguf", "folder/real.gguf"]


def test_a_search_is_bounded(tmp_path, monkeypatch):
    deep = tmp_path / "there" / "/".join("abcdefghijklm") / "m.gguf"
    write(deep)
    monkeypatch.setenv("INSULA_MODELS", str(tmp_path / "there"))
    assert names() == []


def test_paths(tmp_path, monkeypatch):
    path = write(tmp_path / "m.gguf")
    assert resolve(path) == path
    assert resolve(str(path)) == path
    monkeypatch.chdir(tmp_path)
    assert resolve("m.gguf") == Path("m.gguf")
    assert locate("m.gguf").origin == "path"


def test_wrong_paths_say_what_is_there(tmp_path):
    write(tmp_path / "m.gguf")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match=r"no file .*nothing\.gguf"):
        resolve(tmp_path / "nothing.gguf")
    with pytest.raises(NotFoundError, match=r"folder.*m\.gguf"):
        resolve(tmp_path)
    with pytest.raises(NotFoundError, match="folder without"):
        resolve(tmp_path / "empty")


@pytest.mark.parametrize("name", ["", "  ", "a\0b"])
def test_no_name(name):
    with pytest.raises(ConfigError):
        resolve(name)


def test_unknown_names_say_what_is_allowed():
    with pytest.raises(NotFoundError, match=r"smollm2:135m.*hf\.co/"):
        resolve("gpt-5")
    with pytest.raises(NotFoundError, match="insula pull smollm2:135m"):
        resolve("smollm2:135m")
    with pytest.raises(NotFoundError, match="insula pull hf"):
        resolve("hf.co/o/r")
    with pytest.raises(NotFoundError):
        resolve("ollama/none:1b")
    with pytest.raises(ConfigError):
        resolve("a b c")


def test_a_download_happens_only_if_allowed(hub, quick):
    hub.add("o/r", {"m-Q4_K_M.gguf": GGUF})
    with pytest.raises(NotFoundError):
        resolve("hf.co/o/r")
    assert hub.seen == []
    assert resolve("hf.co/o/r", allow_download=True).read_bytes() == GGUF
    count = len(hub.seen)
    assert locate("hf.co/o/r", allow_download=True).origin == "store"
    assert len(hub.seen) == count
    # A damaged blob is fetched again where that is allowed.
    blob = ModelStore().path(ModelStore().get("hf.co/o/r:Q4_K_M"))
    blob.write_bytes(b"")
    assert resolve("hf.co/o/r", allow_download=True).read_bytes() == GGUF
