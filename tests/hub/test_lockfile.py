"""insula.lock: what is pinned is used, and nothing else under its name."""

from __future__ import annotations

import json

import pytest

from insula.errors import ChecksumError, FormatError, NotFoundError
from insula.hub import bundle, lockfile
from insula.hub.create import create
from insula.hub.modelfile import parse
from insula.hub.pull import pull
from insula.hub.pull_file import take_file
from insula.hub.resolve import locate
from insula.hub.store import ModelStore


@pytest.fixture
def store(hub, quick):
    hub.add("o/r", {"m-Q4_0.gguf": b"GGUF one"})
    hub.add_to_registry("library/x:latest", [("model", b"GGUF x"), ("system", b"Be brief.")])
    pull("hf.co/o/r", retry=quick)
    pull("ollama.com/library/x", retry=quick)
    return ModelStore()


HF, OLLAMA = "hf.co/o/r:Q4_0", "ollama.com/library/x:latest"


def test_pins_are_plain_and_sorted(store, tmp_path):
    lockfile.write(store, [OLLAMA])
    lockfile.write(store, [HF])
    document = json.loads((tmp_path / "insula.lock").read_text())
    assert list(document["models"]) == [HF, OLLAMA]
    manifest = store.get(HF)
    assert document["models"][HF] == {
        "digest": manifest.digest,
        "sha256": manifest.sha256,
        "size": 8,
        "source": manifest.source,
    }
    assert [state for _, state in lockfile.compare(store)] == ["same", "same"]
    with pytest.raises(NotFoundError):
        lockfile.write(store, ["none"])


def test_a_changed_file_on_the_hub_is_reported_and_not_fetched(store, hub, quick):
    lockfile.write(store, [HF])
    hub.add("o/r", {"m-Q4_0.gguf": b"GGUF changed"})
    seen = len(hub.bytes_requests())
    with pytest.raises(ChecksumError, match=r"insula lock --remove hf\.co/o/r:Q4_0"):
        pull("hf.co/o/r", retry=quick)
    assert len(hub.bytes_requests()) == seen
    assert locate(HF).path.read_bytes() == b"GGUF one"
    lockfile.unpin([HF])
    pull("hf.co/o/r", retry=quick)
    assert locate(HF).path.read_bytes() == b"GGUF changed"


def test_a_changed_tag_of_a_registry(store, hub, quick):
    lockfile.write(store, [OLLAMA])
    hub.add_to_registry("library/x:latest", [("model", b"GGUF x"), ("system", b"Obey.")])
    with pytest.raises(ChecksumError, match="system prompt"):
        pull("ollama.com/library/x", retry=quick)
    hub.add_to_registry("library/x:latest", [("model", b"GGUF y"), ("system", b"Be brief.")])
    with pytest.raises(ChecksumError, match="sha256"):
        pull("ollama.com/library/x", retry=quick)
    assert store.get(OLLAMA).defaults.system == "Be brief."


def test_what_changed_in_the_store_is_not_used(store, tmp_path):
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF mine")
    take_file(file, "mine:1", store, None)
    lockfile.write(store, ["mine:1"])
    (tmp_path / "insula.lock").rename(tmp_path / "aside")
    create("mine:1", parse("FROM mine:1\nSYSTEM Obey."), folder=tmp_path, store=store)
    (tmp_path / "aside").rename(tmp_path / "insula.lock")
    with pytest.raises(ChecksumError):
        locate("mine:1")
    assert [state for _, state in lockfile.compare(store)] == ["changed"]
    file.write_bytes(b"GGUF other")
    with pytest.raises(ChecksumError):
        take_file(file, "mine:1", store, None, replacing=True)
    store.remove("mine:1")
    assert [state for _, state in lockfile.compare(store)] == ["missing"]


def test_no_way_into_the_store_passes_it(store, hub, quick, tmp_path):
    hub.blobs["m.gguf"] = b"GGUF by address"
    address = f"{hub.cdn}/m.gguf"
    name = pull(address, retry=quick).name
    lockfile.write(store, [name, HF])
    bundle.export([HF], tmp_path / "x.tar", store=store)
    hub.blobs["m.gguf"] = b"GGUF changed"
    with pytest.raises(ChecksumError):
        pull(address, retry=quick)
    bundle.take(tmp_path / "x.tar", store=store)  # the same bytes
    elsewhere = ModelStore(tmp_path / "elsewhere")
    (tmp_path / "n.gguf").write_bytes(b"GGUF forged")
    take_file(tmp_path / "n.gguf", "n:1", elsewhere, None)
    elsewhere.copy("n:1", HF)
    bundle.export([HF], tmp_path / "y.tar", store=elsewhere)
    with pytest.raises(ChecksumError):
        bundle.take(tmp_path / "y.tar", store=store, replacing=True)
    assert locate(HF).path.read_bytes() == b"GGUF one"


def test_the_file_may_be_elsewhere(store, tmp_path, monkeypatch):
    monkeypatch.setenv("INSULA_LOCK", str(tmp_path / "sub" / "pins.json"))
    lockfile.write(store, [HF])
    assert (tmp_path / "sub" / "pins.json").is_file()
    assert not (tmp_path / "insula.lock").exists()
    with pytest.raises(NotFoundError):
        lockfile.unpin(["hf.co/o/other"])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        b'{"format": "insula-lock", "version": 2, "models": {}}',
        b'{"format": "insula-lock", "version": 1, "models": []}',
        b'{"format": "insula-lock", "version": 1, "models": {"a:1": {}}}',
        (
            b'{"format": "insula-lock", "version": 1, "models": {"a:1": {"digest": "x", '
            b'"sha256": "x", "size": 1, "source": ""}}}'
        ),
    ],
)
def test_a_broken_file_stops_rather_than_unpins(store, tmp_path, content):
    (tmp_path / "insula.lock").write_bytes(content)
    with pytest.raises(FormatError, match=r"insula\.lock"):
        locate(HF)
