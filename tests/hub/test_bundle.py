"""Bundles: what export writes, import takes; and nothing else gets in."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from insula.errors import ChecksumError, ConfigError, FormatError, InsulaError, NotFoundError
from insula.hub import bundle, local
from insula.hub.create import create
from insula.hub.modelfile import parse
from insula.hub.pull_file import take_file
from insula.hub.store import ModelStore

MODELFILE = "FROM a:1\nSYSTEM Be brief.\nLICENSE Free\nPARAMETER temperature 0"


@pytest.fixture
def store(tmp_path):
    store = ModelStore()
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF" + b"bytes" * 1000)
    take_file(file, "a:1", store, None)
    create("b:1", parse(MODELFILE), folder=tmp_path, store=store)
    return store


@pytest.fixture
def other(tmp_path):
    return ModelStore(tmp_path / "elsewhere")


def test_there_and_back(store, other, tmp_path):
    path = tmp_path / "both.tar"
    bundle.export(["a:1", "b:1"], path, store=store)
    assert bundle.is_bundle(path)
    taken = bundle.take(path, store=other)
    assert [m.name for m in taken] == ["a:1", "b:1"]
    for name in ("a:1", "b:1"):
        assert other.get(name).digest == store.get(name).digest
        assert other.is_whole(other.get(name))
    assert other.path(other.get("b:1")).read_bytes() == b"GGUF" + b"bytes" * 1000
    assert other.get("a:1").source.startswith("bundle:both.tar (file:")
    assert len(list(other.blobs.iterdir())) == 2  # the weights once, and a licence
    assert not list(other.partial.iterdir())


def test_any_tar_reads_it_and_the_same_models_give_the_same_bytes(store, tmp_path):
    one, two = tmp_path / "1.tar", tmp_path / "2.tar"
    bundle.export(["a:1", "b:1"], one, store=store)
    bundle.export(["a:1", "b:1"], two, store=store)
    assert one.read_bytes() == two.read_bytes()
    with tarfile.open(one) as archive:
        names = archive.getnames()
        assert names[0] == "manifest.json"
        for name in names[1:]:
            data = archive.extractfile(name).read()
            assert name == f"blobs/sha256-{hashlib.sha256(data).hexdigest()}"


def test_a_model_in_place_travels_as_a_whole_one(store, other, tmp_path):
    file = tmp_path / "here.gguf"
    file.write_bytes(b"GGUF here")
    take_file(file, "c:1", store, None, in_place=True)
    bundle.export(["c:1"], tmp_path / "c.tar", store=store)
    bundle.take(tmp_path / "c.tar", store=other)
    assert other.get("c:1").place is None
    assert other.path(other.get("c:1")).read_bytes() == b"GGUF here"


def test_what_is_not_there_or_damaged_is_not_exported(store, tmp_path):
    with pytest.raises(NotFoundError):
        bundle.export(["a:1", "none"], tmp_path / "x.tar", store=store)
    blob = store.path(store.get("a:1"))
    blob.write_bytes(b"GGUF" + b"BYTES" * 1000)
    with pytest.raises(ChecksumError, match="damaged"):
        bundle.export(["a:1"], tmp_path / "x.tar", store=store)
    assert not [p for p in tmp_path.iterdir() if "x.tar" in p.name]


def test_a_name_that_means_something_else_is_kept(store, other, tmp_path):
    bundle.export(["a:1"], tmp_path / "a.tar", store=store)
    file = tmp_path / "n.gguf"
    file.write_bytes(b"GGUF mine")
    take_file(file, "a:1", other, None)
    with pytest.raises(ConfigError, match="another model"):
        bundle.take(tmp_path / "a.tar", store=other)
    assert other.path(other.get("a:1")).read_bytes() == b"GGUF mine"
    bundle.take(tmp_path / "a.tar", store=other, replacing=True)
    assert other.get("a:1").digest == store.get("a:1").digest


@pytest.fixture
def parts(store, tmp_path):
    """What a bundle of one model is made of: its document, and its members."""
    path = tmp_path / "a.tar"
    bundle.export(["a:1"], path, store=store)
    with tarfile.open(path) as archive:
        members = {m.name: archive.extractfile(m).read() for m in archive}
    document = json.loads(members.pop("manifest.json"))
    return document, members


def make(path: Path, document: object, members: dict[str, bytes], *more: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in [("manifest.json", json.dumps(document).encode()), *members.items()]:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
        for entry in more:
            archive.addfile(entry)
    return path


def refused(path: Path, store: ModelStore, kind: type[InsulaError] = FormatError) -> str:
    with pytest.raises(kind) as caught:
        bundle.take(path, store=store)
    assert store.scan() == ([], [])
    assert not [p for p in store.root.rglob("*") if p.is_file()]
    return str(caught.value)


def test_the_parts_make_a_good_bundle(parts, other, tmp_path):
    document, members = parts
    bundle.take(make(tmp_path / "x.tar", document, members), store=other)
    assert other.get("a:1") is not None


@pytest.mark.parametrize(
    "name",
    [
        "../../outside",
        "/tmp/outside",
        "blobs/../../outside",
        "blobs/sha256-" + "0" * 64,
        "manifest.json",
        "blobs\\sha256-x",
        "bl\u00f6bs",
        "x" * 200,
    ],
)
def test_names_beside_those_announced_are_refused(parts, other, tmp_path, name):
    document, members = parts
    entry = tarfile.TarInfo(name)
    refused(make(tmp_path / "x.tar", document, members, entry), other)
    assert not (tmp_path / "outside").exists()
    assert not (tmp_path.parent / "outside").exists()


@pytest.mark.parametrize(
    "kind",
    [
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.FIFOTYPE,
        tarfile.DIRTYPE,
        tarfile.GNUTYPE_SPARSE,
        tarfile.CONTTYPE,
        tarfile.AREGTYPE,
    ],
)
def test_nothing_but_regular_files(parts, other, tmp_path, kind):
    document, members = parts
    (name,) = members
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, "/etc/passwd"
    refused(make(tmp_path / "x.tar", document, {}, entry), other)


def test_an_extended_header_is_not_read(parts, other, tmp_path):
    document, members = parts
    entry = tarfile.TarInfo("x" * 300)  # GNU writes the name into a member of its own
    assert "insula export" in refused(make(tmp_path / "x.tar", document, members, entry), other)


def test_other_bytes_than_announced(parts, other, tmp_path):
    document, members = parts
    (name,) = members
    wrong = {name: members[name][:-1] + b"!"}
    assert "damaged" in refused(make(tmp_path / "x.tar", document, wrong), other, ChecksumError)
    refused(make(tmp_path / "x.tar", document, {name: members[name][:-1]}), other)
    refused(make(tmp_path / "x.tar", document, {}), other)
    twice = tarfile.TarInfo(name)
    refused(make(tmp_path / "x.tar", document, members, twice), other)


def test_a_bundle_cut_short_anywhere(parts, other, tmp_path):
    document, members = parts
    whole = make(tmp_path / "x.tar", document, members).read_bytes()
    end = len(whole.rstrip(b"\0"))
    for cut in (0, 1, 511, 512, 700, 1024, end // 2, end - 1):
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        refused(tmp_path / "cut.tar", other, InsulaError)


def _set(document, *path, value):
    for key in path[:-1]:
        document = document[key]
    document[path[-1]] = value


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(format="zip"),
        lambda d: d.update(version=2),
        lambda d: d.update(models=[]),
        lambda d: d.update(models=d["models"] * 2000),
        lambda d: d.update(blobs={"0" * 64: 1, **d["blobs"]}),
        lambda d: d.update(blobs={}),
        lambda d: d.clear(),
        lambda d: _set(d, "models", 0, "name", value="../../x:1"),
        lambda d: _set(d, "models", 0, "name", value="a"),
        lambda d: _set(d, "models", 0, "name", value="smollm2:135m"),
        lambda d: _set(d, "models", 0, "name", value="/etc/x:1"),
        lambda d: _set(d, "models", 0, "sha256", value="../../x"),
        lambda d: _set(d, "models", 0, "file", value="../../x.gguf"),
        lambda d: _set(d, "models", 0, "file", value="C:\\x.gguf"),
        lambda d: _set(d, "models", 0, "file", value=".."),
        lambda d: _set(d, "models", 0, "size", value=-1),
        lambda d: _set(d, "models", 0, "size", value=1 << 70),
        lambda d: _set(d, "models", 0, "surprise", value=1),
        lambda d: _set(d, "models", 0, "layers", value=[{"kind": "x"}]),
        lambda d: _set(d, "models", 0, "defaults", value={"parameters": {"a": {}}}),
        lambda d: _set(d, "models", 0, "defaults", value={"messages": [["robot", "x"]]}),
        lambda d: _set(d, "models", 0, "place", value={"path": "/etc/passwd", "mtime_ns": 1}),
    ],
)
def test_a_document_that_lies(parts, other, tmp_path, change):
    document, members = parts
    change(document)
    refused(make(tmp_path / "x.tar", document, members), other, InsulaError)


def test_deep_nesting_and_other_files(other, tmp_path):
    make(tmp_path / "x.tar", None, {})
    raw = (tmp_path / "x.tar").read_bytes()
    assert raw
    for data in (b"", b"hello", bytes(2048), b"\xff" * 4096, b"manifest.json" + bytes(2000)):
        (tmp_path / "y.tar").write_bytes(data)
        refused(tmp_path / "y.tar", other)
    deep = b"[" * 200_000
    with tarfile.open(tmp_path / "z.tar", "w") as archive:
        entry = tarfile.TarInfo("manifest.json")
        entry.size = len(deep)
        archive.addfile(entry, io.BytesIO(deep))
    refused(tmp_path / "z.tar", other)


def test_weights_that_are_no_model(parts, other, tmp_path):
    document, _ = parts
    data = b"#!/bin/sh"
    sha = hashlib.sha256(data).hexdigest()
    _set(document, "models", 0, "sha256", value=sha)
    _set(document, "models", 0, "size", value=len(data))
    document["blobs"] = {sha: len(data)}
    refused(make(tmp_path / "x.tar", document, {f"blobs/sha256-{sha}": data}), other)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no kill -9 on Windows")
def test_killed_while_importing_leaves_nothing_that_prune_does_not_take(parts, other, tmp_path):
    path = make(tmp_path / "x.tar", *parts)
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom insula.hub import bundle\n"
        "from insula.hub.store import ModelStore\n"
        "def die(event):\n    os.kill(os.getpid(), 9)\n"
        "bundle.take(Path(sys.argv[1]), store=ModelStore(Path(sys.argv[2])), progress=die)"
    )
    command = [sys.executable, "-c", code, str(path), str(other.root)]
    assert subprocess.run(command, check=False).returncode == -9
    assert other.scan() == ([], [])
    assert other.prune(remove=False).files >= 1
    assert other.prune().files >= 1
    assert not list(other.partial.iterdir())
    bundle.take(path, store=other)
    assert other.get("a:1") is not None


def named(document, *names):
    """The document with one model under each of these names."""
    (model,) = document["models"]
    return {**document, "models": [{**model, "name": name} for name in names]}


@pytest.mark.parametrize(
    "names",
    [
        ("a:1", "b:1", "a:1"),
        ("a:1", "b:1", "A:1"),  # one file where case does not count
        ("a:1", "a/1.json:x"),  # a file and a folder
        ("a/1.json:x", "a:1"),
    ],
)
def test_names_that_collide_come_in_whole_or_not_at_all(parts, other, tmp_path, names):
    document, members = parts
    said = refused(make(tmp_path / "x.tar", named(document, *names), members), other, ConfigError)
    assert "cannot both be names" in said


def test_names_that_collide_with_what_is_here(parts, other, tmp_path):
    document, members = parts
    bundle.take(make(tmp_path / "a.tar", document, members), store=other)
    crossing = make(tmp_path / "x.tar", named(document, "b:1", "a/1.json:x"), members)
    for replacing in (False, True):
        with pytest.raises(ConfigError, match="cannot both be names"):
            bundle.take(crossing, store=other, replacing=replacing)
    assert [m.name for m in other.scan()[0]] == ["a:1"]
    assert not list(other.partial.iterdir())


def test_a_disk_that_fails_in_the_middle_leaves_no_half(parts, other, tmp_path):
    document, members = parts
    bundle.take(make(tmp_path / "a.tar", named(document, "b:1"), members), store=other)
    before = other.get("b:1")
    manifests = [replace(before, name=name, licence="new") for name in ("b:1", "c:1", "d:1")]
    (other.manifests / "d").symlink_to(tmp_path / "nowhere")  # no manifest can be put there
    with pytest.raises((InsulaError, OSError)):
        other.add_all(manifests, {})
    assert other.scan()[0] == [before]


@pytest.mark.parametrize("program", local.PROGRAMS)
def test_names_of_other_programs_do_not_come_with_a_bundle(parts, other, tmp_path, program):
    document, members = parts
    for name in (f"{program}/x:1", f"{program.upper()}/x/y:1"):
        refused(make(tmp_path / "x.tar", named(document, "b:1", name), members), other)
