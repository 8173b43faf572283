"""GPT4All's file names and folders: found, fetched, checked, refused."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from insula.compat import gpt4all_files as files
from insula.compat.gpt4all import GPT4All
from insula.errors import ChecksumError, ConfigError, DownloadError, InsulaError, OfflineError

BYTES = b"GGUF" + bytes(range(256)) * 4000
MD5 = hashlib.md5(BYTES).hexdigest()


class Site:
    """gpt4all.io on the loopback. `cut` answers end after that many bytes, once each."""

    def __init__(self) -> None:
        self.models: Any = [
            {
                "filename": "tiny.gguf",
                "filesize": str(len(BYTES)),
                "md5sum": MD5,
                "promptTemplate": "### Human:\n%1\n### Assistant:\n%2\n",
                "systemPrompt": "Be kind.",
            }
        ]
        self.cut: list[int] = []
        self.asked: list[str] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append(self.path)
                if self.path == "/models3.json":
                    body, status, start = json.dumps(site.models).encode(), 200, 0
                elif self.path == "/gguf/tiny.gguf":
                    asked = self.headers.get("Range", "bytes=0-")
                    start = int(asked.removeprefix("bytes=").removesuffix("-"))
                    body, status = BYTES[start:], 206 if start else 200
                else:
                    self.send_error(404)
                    return
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                if status == 206:
                    self.send_header(
                        "Content-Range", f"bytes {start}-{len(BYTES) - 1}/{len(BYTES)}"
                    )
                self.send_header("ETag", '"one"')
                self.end_headers()
                if status != 404 and self.path != "/models3.json" and site.cut:
                    self.wfile.write(body[: site.cut.pop(0)])
                    self.close_connection = True
                    return
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    site = Site()
    monkeypatch.setattr(files, "LIST_URL", f"{site.url}/models3.json")
    monkeypatch.setattr(files, "FILES_URL", f"{site.url}/gguf/")
    yield site
    site.server.shutdown()
    site.server.server_close()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, with gpt4all's folder in it; no proxy and no offline switch."""
    monkeypatch.setenv("INSULA_HOME", str(tmp_path / "insula"))
    monkeypatch.setattr(files, "DEFAULT_MODEL_DIRECTORY", tmp_path / "gpt4all")
    for name in (
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "http_proxy",
        "https_proxy",
        "all_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return tmp_path


def test_a_file_that_is_here_asks_nobody(tmp_path: Path, site: Site) -> None:
    (tmp_path / "my.gguf").write_bytes(BYTES)
    for name in ("my.gguf", "my"):
        config = GPT4All.retrieve_model(name, model_path=tmp_path)
        assert config == {"path": str(tmp_path / "my.gguf")}
    assert site.asked == []


def test_the_default_folder_is_gpt4alls(home: Path) -> None:
    (home / "gpt4all").mkdir()
    (home / "gpt4all" / "old.bin").write_bytes(BYTES)
    assert GPT4All.retrieve_model("old.bin")["path"] == str(home / "gpt4all" / "old.bin")


def test_verbose_says_which_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "my.gguf").write_bytes(BYTES)
    GPT4All.retrieve_model("my", model_path=tmp_path, verbose=True)
    assert "my.gguf" in capsys.readouterr().err


def test_the_list(site: Site) -> None:
    assert GPT4All.list_models() == site.models
    site.models = {"not": "a list"}
    with pytest.raises(DownloadError, match="not a list"):
        GPT4All.list_models()


def test_a_name_of_the_list_is_fetched_once(tmp_path: Path, site: Site) -> None:
    config = GPT4All.retrieve_model("tiny", model_path=tmp_path)
    path = tmp_path / "tiny.gguf"
    assert config["path"] == str(path)
    assert config["promptTemplate"] == "### Human:\n{0}\n### Assistant:\n{1}\n"
    assert config["systemPrompt"] == "Be kind."
    assert path.read_bytes() == BYTES
    assert [p.name for p in tmp_path.glob("*.part")] == []
    before = len(site.asked)
    GPT4All.retrieve_model("tiny", model_path=tmp_path)
    assert len(site.asked) == before


def test_a_dying_connection_is_resumed(tmp_path: Path, site: Site) -> None:
    site.cut = [1_500_00]
    GPT4All.retrieve_model("tiny", model_path=tmp_path)
    assert (tmp_path / "tiny.gguf").read_bytes() == BYTES
    assert site.asked.count("/gguf/tiny.gguf") == 2


def test_a_wrong_checksum_leaves_nothing(tmp_path: Path, site: Site) -> None:
    site.models[0]["md5sum"] = "0" * 32
    with pytest.raises(ChecksumError, match="expected MD5 0000"):
        GPT4All.retrieve_model("tiny", model_path=tmp_path)
    assert not list(tmp_path.glob("*.gguf"))
    assert not list(tmp_path.glob("*.part"))


def test_a_name_that_nobody_knows(tmp_path: Path, site: Site) -> None:
    with pytest.raises(FileNotFoundError, match=r"no model is called 'nope\.gguf'") as info:
        GPT4All.retrieve_model("nope", model_path=tmp_path)
    assert isinstance(info.value, InsulaError)
    assert "smollm2:135m" in str(info.value)


def test_without_download_a_missing_file_is_an_error(tmp_path: Path, site: Site) -> None:
    with pytest.raises(FileNotFoundError, match="Model file does not exist"):
        GPT4All("nope", model_path=tmp_path, allow_download=False)
    with pytest.raises(FileNotFoundError, match="Model directory does not exist"):
        GPT4All("nope", model_path=tmp_path / "absent", allow_download=False)
    with pytest.raises(FileNotFoundError, match="insula pull smollm2"):
        GPT4All("smollm2:135m", allow_download=False)
    assert site.asked == []


def test_offline_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OfflineError):
        GPT4All.retrieve_model("tiny", model_path=tmp_path)


@pytest.mark.parametrize("name", ["../evil.gguf", "/tmp/evil.gguf", "a/b.gguf"])
def test_a_download_stays_in_its_folder(tmp_path: Path, site: Site, name: str) -> None:
    with pytest.raises(ConfigError, match="plain file name"):
        GPT4All.download_model(name, tmp_path)
    assert site.asked == []


def test_download_model_on_its_own(
    tmp_path: Path, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    path = GPT4All.download_model("tiny.gguf", tmp_path, url=f"{site.url}/gguf/tiny.gguf")
    assert Path(path).read_bytes() == BYTES
    assert "downloaded" in capsys.readouterr().err


def put_in_store(name: str) -> Path:
    """A file of the model store under `name`."""
    from insula.hub.store import Manifest, ModelStore

    store = ModelStore()
    store.prepare()
    part = store.partial / "one"
    part.write_bytes(BYTES)
    manifest = Manifest(
        name=name,
        file="stored.gguf",
        sha256=hashlib.sha256(BYTES).hexdigest(),
        size=len(BYTES),
        source="test",
        licence=None,
        pulled="2026-01-01T00:00:00+00:00",
    )
    return store.add(manifest, part)


def test_insulas_names_come_from_its_store(tmp_path: Path, site: Site) -> None:
    blob = put_in_store("mine:q4")
    assert GPT4All.retrieve_model("mine:q4", allow_download=False)["path"] == str(blob)
    folder = tmp_path / "models"
    folder.mkdir()
    config = GPT4All.retrieve_model("mine:q4", model_path=folder, allow_download=False)
    assert config["path"] == str(folder / "stored.gguf")
    assert (folder / "stored.gguf").read_bytes() == BYTES
    assert site.asked == []
