"""The store: whole files by digest, names beside them, nothing that anybody else can read."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from insula.errors import ConfigError, FormatError, NotFoundError, ResourceError
from insula.hub.manifest import Defaults, Layer, Manifest
from insula.hub.store import ModelStore
from insula.security.lock import locked


def manifest(name: str, data: bytes = b"GGUF one", **changes) -> Manifest:
    values = {
        "name": name,
        "file": "m.gguf",
        "sha256": hashlib.sha256(data).hexdigest(),
        "size": len(data),
        "source": "test",
        "licence": None,
        "pulled": "2026-11-22T00:00:00+00:00",
    }
    return Manifest(**{**values, **changes})


def put(store: ModelStore, name: str, data: bytes = b"GGUF one") -> Path:
    store.prepare()
    file = store.partial / "x.part"
    file.write_bytes(data)
    return store.add(manifest(name, data), file)


@pytest.fixture
def store() -> ModelStore:
    return ModelStore()


def test_what_goes_in_comes_out(store, home):
    blob = put(store, "hf.co/o/r:Q4_K_M")
    held = store.get("hf.co/o/r:Q4_K_M")
    assert held == manifest("hf.co/o/r:Q4_K_M")
    assert store.path(held) == blob
    assert blob.read_bytes() == b"GGUF one"
    assert store.root == home / "models"
    document = json.loads((store.manifests / "hf.co/o/r/Q4_K_M.json").read_text())
    assert document["name"] == "hf.co/o/r:Q4_K_M"
    assert document["schema"] == 2


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such permission bits")
def test_nobody_else_can_read_it(store, home):
    put(store, "a:1")
    for path in [home, *home.rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


def test_reading_makes_nothing(store, home):
    assert store.scan() == ([], [])
    assert store.get("a:1") is None
    assert not store.has_blob("0" * 64)
    assert store.prune().files == 0
    assert not home.exists()


def test_a_name_without_its_tag_means_the_only_one(store):
    put(store, "a:1")
    assert store.get("a").name == "a:1"
    put(store, "a:2", b"GGUF two")
    assert store.get("a") is None
    put(store, "a:latest", b"GGUF three")
    assert store.get("a").name == "a:latest"


def test_tags_are_found_in_any_case(store):
    put(store, "hf.co/o/r:Q4_K_M")
    assert store.get("hf.co/o/r:q4_k_m").name == "hf.co/o/r:Q4_K_M"


def test_a_blob_lives_as_long_as_a_name_means_it(store):
    blob = put(store, "a:1")
    store.add(manifest("b:1"))
    assert store.remove("a:1").freed == 0
    assert blob.exists()
    assert store.remove("b:1").freed == 8
    assert not blob.exists()
    assert not (store.manifests / "a").exists()
    with pytest.raises(NotFoundError, match="a:1"):
        store.remove("a:1")


def test_unsafe_names_never_reach_the_disk(store):
    for name in ("../../x:1", "/etc/passwd:1", "a:../b"):
        for action in (store.get, store.remove, lambda n: store.add(manifest(n))):
            with pytest.raises(ConfigError):
                action(name)


def test_a_manifest_without_its_blob_is_not_made(store):
    with pytest.raises(NotFoundError):
        store.add(manifest("a:1"))
    assert store.scan() == ([], [])


def test_a_blob_that_lost_bytes_is_reported(store):
    blob = put(store, "a:1")
    blob.write_bytes(b"GG")
    with pytest.raises(NotFoundError, match="insula pull a:1"):
        store.path(store.get("a:1"))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"schema":1}',
        b'{"schema":2,"name":"a:1","file":"m","sha256":"x","size":1,"source":"","licence":null,"pulled":""}',
        b'{"schema":1,"name":"a:1","file":"m","sha256":"../../x","size":1,"source":"","licence":null,"pulled":""}',
        b'{"schema":1,"name":"a:1","file":"m","sha256":"%s","size":-1,"source":"","licence":null,"pulled":""}'
        % (b"0" * 64),
        b"[" * 100_000,
    ],
)
def test_a_broken_manifest_is_named_and_hides_nothing_else(store, content):
    put(store, "good:1")
    bad = store.manifests / "bad" / "1.json"
    bad.parent.mkdir()
    bad.write_bytes(content)
    manifests, faults = store.scan()
    assert [m.name for m in manifests] == ["good:1"]
    assert len(faults) == 1
    assert str(bad) in str(faults[0])
    with pytest.raises(FormatError):
        store.get("bad:1")
    # While one manifest cannot be read, no blob is thrown away: it might mean it.
    assert store.remove("good:1").freed == 0


def test_prune_takes_only_what_nothing_names(store):
    kept = put(store, "a:1")
    (store.blobs / f"sha256-{'1' * 64}").write_bytes(b"orphan")
    (store.partial / "old.part").write_bytes(b"1234")
    (store.partial / "busy.part").write_bytes(b"1")
    with locked(store.partial / "busy.lock"):
        pruned = store.prune()
    assert (pruned.files, pruned.freed) == (2, 10)
    assert kept.exists()
    assert [path.name for path in store.partial.iterdir()] == ["busy.part"]


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="INSULA_HOME"):
        ModelStore(tmp_path / "file" / "models").prepare()


def test_locks_exclude_across_threads_and_leave_no_file(tmp_path):
    path = tmp_path / "lock"
    inside, most = 0, 0
    guard = threading.Lock()

    def work():
        nonlocal inside, most
        for _ in range(20):
            with locked(path):
                with guard:
                    inside += 1
                    most = max(most, inside)
                with guard:
                    inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert not path.exists()


def test_a_lock_dies_with_its_process(tmp_path):
    path = tmp_path / "lock"
    code = (
        "import os, sys; from pathlib import Path; from insula.security.lock import locked\n"
        "with locked(Path(sys.argv[1])): os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 9
    assert path.exists()
    with locked(path):
        pass
    assert not path.exists()


def test_a_store_of_the_earlier_layout_is_used_as_it_is(store, home):
    """As the first release wrote it: one file per name, no layers, schema 1."""
    data = b"GGUF of old"
    sha256 = hashlib.sha256(data).hexdigest()
    store.prepare()
    (store.blobs / f"sha256-{sha256}").write_bytes(data)
    old = {
        "schema": 1,
        "name": "hf.co/o/r:Q4_0",
        "file": "m.gguf",
        "sha256": sha256,
        "size": len(data),
        "source": "https://huggingface.co/o/r@1234567:m.gguf",
        "licence": "mit",
        "pulled": "2026-11-01T00:00:00+00:00",
    }
    path = store.manifests / "hf.co" / "o" / "r" / "Q4_0.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(old))
    before = path.read_bytes()
    held = store.get("hf.co/o/r:Q4_0")
    assert (held.layers, held.defaults.parameters, held.place) == ((), {}, None)
    assert store.path(held).read_bytes() == data
    assert path.read_bytes() == before  # reading writes nothing
    copied = store.copy("hf.co/o/r", "mine:1")
    assert copied.digest == held.digest
    assert json.loads((store.manifests / "mine" / "1.json").read_text())["schema"] == 2
    assert store.remove("hf.co/o/r").freed == 0
    assert store.path(store.get("mine")).read_bytes() == data


def test_blobs_are_shared_between_names_and_layers(store):
    store.prepare()
    data = b"GGUF both weights and adapter"
    layer = Layer(kind="adapter", sha256=hashlib.sha256(data).hexdigest(), size=len(data))
    put(store, "a:1", data)
    extra = store.partial / "extra"
    extra.write_bytes(b"GGUF w")
    store.add(manifest("b:1", b"GGUF w", layers=(layer,)), extra)
    assert store.references() == {layer.sha256: 2, hashlib.sha256(b"GGUF w").hexdigest(): 1}
    assert store.remove("a:1").freed == 0
    assert store.is_whole(store.get("b:1"))
    assert store.remove("b:1").freed == len(data) + 6
    assert list(store.blobs.iterdir()) == []


def test_a_manifest_without_one_of_its_layers_is_not_made(store):
    put(store, "a:1")
    layer = Layer(kind="licence", sha256="1" * 64, size=3)
    with pytest.raises(NotFoundError):
        store.add(manifest("b:1", layers=(layer,)))
    assert store.get("b:1") is None


def test_the_digest_is_of_what_decides_an_answer():
    plain = manifest("a:1")
    assert plain.digest == manifest("b:2", source="elsewhere", pulled="later").digest
    others = [
        manifest("a:1", b"other"),
        manifest("a:1", defaults=Defaults(system="x")),
        manifest("a:1", defaults=Defaults(parameters={"top_k": 1})),
        manifest("a:1", defaults=Defaults(template="x")),
        manifest("a:1", defaults=Defaults(messages=(("user", "x"),))),
        manifest("a:1", layers=(Layer(kind="adapter", sha256="1" * 64, size=3),)),
        manifest("a:1", layers=(Layer(kind="licence", sha256="1" * 64, size=3),)),
    ]
    assert len({plain.digest, *(other.digest for other in others)}) == 8


def test_prune_takes_what_a_killed_process_left_and_nothing_of_a_live_one(store):
    with store.workplace() as folder:
        (folder / "copy").write_bytes(b"1234")
        assert store.prune().files == 0
        assert (folder / "copy").exists()
    assert not list(store.partial.iterdir())
    left = store.partial / "work-0"
    left.mkdir()
    (left / "copy").write_bytes(b"1234")
    (store.partial / "work-0.lock").touch()  # its process is gone
    assert store.prune().freed == 4
    assert not list(store.partial.iterdir())


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff\xfe", b"[" * 100_000])
def test_a_name_whose_manifest_is_damaged_can_be_removed(store, data):
    put(store, "good:1", b"GGUF good")
    put(store, "bad:1", b"GGUF bad")
    (store.manifests / "bad" / "1.json").write_bytes(data)
    for name in ("bad:1", "bad"):
        with pytest.raises(FormatError):
            store.get(name)
    removed = store.remove("bad")
    assert (removed.name, removed.manifest, removed.freed) == ("bad", None, 0)
    assert [m.name for m in store.scan()[0]] == ["good:1"]
    assert store.scan()[1] == []
    assert not (store.manifests / "bad").exists()
    assert store.prune().freed == len(b"GGUF bad")
    assert store.is_whole(store.get("good:1"))
    with pytest.raises(NotFoundError):
        store.remove("bad:1")
