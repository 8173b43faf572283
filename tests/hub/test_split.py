"""Split models: pulled whole, one name in the store, run from there; and what does not belong."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from hub_server import die_after, other_bytes
from insula import LLM
from insula.errors import (
    ChecksumError,
    DownloadError,
    FormatError,
    NotFoundError,
    UnsupportedError,
)
from insula.formats.gguf import GGUFFile
from insula.formats.gguf_split import siblings
from insula.hub import bundle, lockfile
from insula.hub.create import create, write_modelfile
from insula.hub.modelfile import parse
from insula.hub.pull import pull
from insula.hub.pull_file import take_file
from insula.hub.resolve import locate
from insula.hub.store import ModelStore
from split_model import split
from tiny_chat_model import write_tiny

GREEDY = {"temperature": 0, "max_tokens": 8, "ignore_eos": True}
NAME = "hf.co/o/r:Q4_K_M"


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "whole.gguf")


@pytest.fixture
def files(whole: Path, tmp_path: Path) -> list[Path]:
    return split(whole, tmp_path / "parts", base="m-Q4_K_M")


@pytest.fixture
def repo(hub, files: list[Path]):
    named = {f"Q4_K_M/{path.name}": path.read_bytes() for path in files}
    return hub.add("o/r", {"m-Q2_K.gguf": b"GGUF q2", **named})


def answer(model: str | Path) -> tuple[int, ...]:
    with LLM(model, n_ctx=64) as llm:
        return llm.generate([5, 6, 7], **GREEDY).token_ids


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("hf.co/o/r", NAME),  # the default, in a folder of its own
        ("hf.co/o/r:q4_k_m", NAME),
        (
            "hf.co/o/r/Q4_K_M/m-Q4_K_M-00001-of-00003.gguf",
            "hf.co/o/r:m-Q4_K_M-00001-of-00003",
        ),
        (
            "hf.co/o/r/Q4_K_M/m-Q4_K_M-00003-of-00003.gguf",
            "hf.co/o/r:m-Q4_K_M-00001-of-00003",
        ),
    ],
)
def test_all_parts_come_and_run_as_one(hub, repo, files, whole, quick, asked, name) -> None:
    manifest = pull(asked, retry=quick)
    assert manifest.name == name
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    assert [sha256 for sha256, _ in manifest.parts] == digests
    assert manifest.model_size == sum(path.stat().st_size for path in files)
    assert manifest.licence == "apache-2.0"
    assert len(hub.bytes_requests()) == 3
    store = ModelStore()
    assert {path.name for path in store.blobs.iterdir()} == {f"sha256-{d}" for d in digests}
    assert not list(store.partial.iterdir())
    located = locate(name)
    assert located.manifest == store.get(name)
    with GGUFFile.open(located.path) as file, GGUFFile.open(whole) as one:
        assert file.tensors.keys() == one.tensors.keys()
    assert answer(name) == answer(whole)
    assert pull(asked, retry=quick).digest == manifest.digest
    assert len(hub.bytes_requests()) == 3  # all of it was there


def test_a_folder_may_be_named_after_the_quantization_alone(hub, whole, tmp_path, quick) -> None:
    files = split(whole, tmp_path / "plain", 2, base="model")
    hub.add("o/r", {f"Q5_K_M/{path.name}": path.read_bytes() for path in files})
    assert pull("hf.co/o/r:Q5_K_M", retry=quick).name == "hf.co/o/r:Q5_K_M"


def test_hubs_that_state_no_digests(hub, repo, files, whole, quick) -> None:
    repo.lfs = False
    manifest = pull(NAME, retry=quick)
    assert [size for _, size in manifest.parts] == [path.stat().st_size for path in files]
    assert answer(NAME) == answer(whole)


def test_a_transfer_goes_on_where_it_stopped(hub, repo, files, quick) -> None:
    size = files[1].stat().st_size
    hub.faults += [lambda _: False, die_after(size // 2), *[die_after(0)] * 30]
    with pytest.raises(DownloadError):
        pull(NAME, retry=quick)
    store = ModelStore()
    assert store.get(NAME) is None
    hub.faults.clear()
    before = len(hub.bytes_requests())
    assert store.is_whole(pull(NAME, retry=quick))
    ranges = [seen.headers.get("Range") for seen in hub.bytes_requests()[before:]]
    assert ranges == [f"bytes={size // 2}-", None]  # the first part was there


def test_bytes_that_are_not_those_promised(hub, repo, files, quick) -> None:
    hub.faults += [lambda _: False, other_bytes(b"x" * files[1].stat().st_size)]
    with pytest.raises(ChecksumError):
        pull(NAME, retry=quick)
    assert ModelStore().get(NAME) is None


def test_a_part_that_is_missing_or_of_another_model(hub, repo, whole, tmp_path, quick) -> None:
    third = "Q4_K_M/m-Q4_K_M-00003-of-00003.gguf"
    held = repo.files.pop(third)
    with pytest.raises(NotFoundError, match="1 of them are not in the repository"):
        pull(NAME, retry=quick)
    other = split(whole, tmp_path / "other", 3, no=2)
    hub.add(
        "o/r",
        {**repo.files, third: held}
        | {"Q4_K_M/m-Q4_K_M-00002-of-00003.gguf": other[1].read_bytes()},
    )
    with pytest.raises(FormatError, match="do not belong together"):
        pull(NAME, retry=quick)
    store = ModelStore()
    assert store.get(NAME) is None
    assert not [path for path in store.root.rglob("*") if path.is_file()]


def test_names_and_bytes_are_counted(hub, repo, quick, tmp_path) -> None:
    store = ModelStore()
    manifest = pull(NAME, retry=quick)
    first = store.path(manifest)
    assert len(siblings(first)) == 3
    store.copy(NAME, "mine:1")
    assert set(store.references().values()) == {2}
    assert store.remove(NAME).freed == 0
    assert store.path(store.get("mine:1")) == first
    assert answer("mine:1")
    assert store.prune().files == 0
    assert first.exists()
    assert store.remove("mine:1").freed == manifest.model_size
    assert not [path for path in store.root.rglob("*") if path.is_file()]


def test_second_names_cost_no_bytes_and_are_made_again(hub, repo, quick) -> None:
    store = ModelStore()
    manifest = pull(NAME, retry=quick)
    parts = siblings(store.path(manifest))
    for path, (sha256, _) in zip(parts, manifest.parts, strict=True):
        assert path.samefile(store.blob_path(sha256))
    parts[1].unlink()
    parts[2].unlink()
    parts[2].write_bytes(b"something else")
    assert siblings(store.path(manifest)) == parts
    assert parts[2].samefile(store.blob_path(manifest.parts[2][0]))
    blob = store.blob_path(manifest.parts[1][0])
    blob.write_bytes(b"short")
    assert not store.is_whole(manifest)
    with pytest.raises(NotFoundError, match="incomplete"):
        store.path(manifest)
    (store.splits / "left").mkdir()
    (store.splits / "left" / "model-00001-of-00002.gguf").write_bytes(b"x")
    store.prune()
    assert not (store.splits / "left").exists()


def test_a_bundle_has_all_parts(hub, repo, quick, tmp_path, whole) -> None:
    store, other = ModelStore(), ModelStore(tmp_path / "elsewhere")
    manifest = pull(NAME, retry=quick)
    bundle.export([NAME], tmp_path / "b.tar", store=store)
    (taken,) = bundle.take(tmp_path / "b.tar", store=other)
    assert taken.digest == manifest.digest
    assert answer(other.path(taken)) == answer(whole)


def test_a_bundle_whose_parts_do_not_belong_together(whole, tmp_path) -> None:
    store, other = ModelStore(), ModelStore(tmp_path / "elsewhere")
    manifest = take_file(split(whole, tmp_path / "p")[0], "a:1", store, None)
    wrong = split(whole, tmp_path / "wrong", no=2)
    data = wrong[1].read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    store.blob_path(sha256).write_bytes(data)
    layers = tuple(
        type(layer)(kind="part", sha256=sha256, size=len(data)) if number == 0 else layer
        for number, layer in enumerate(manifest.layers)
    )
    store.add(type(manifest)(**{**vars(manifest), "layers": layers}))
    bundle.export(["a:1"], tmp_path / "b.tar", store=store)
    with pytest.raises(FormatError, match="do not belong together"):
        bundle.take(tmp_path / "b.tar", store=other)
    assert other.scan() == ([], [])


def test_the_lock_counts_every_part(hub, repo, whole, tmp_path, quick) -> None:
    pull(NAME, retry=quick)
    (pin,) = lockfile.write(ModelStore(), [NAME])
    assert pin.size == sum(len(data) for path, data in repo.files.items() if "Q4_K_M" in path)
    assert lockfile.compare(ModelStore()) == [(pin, "same")]
    other = split(write_tiny(tmp_path / "other.gguf", name="Other"), tmp_path / "o")
    last = "Q4_K_M/m-Q4_K_M-00003-of-00003.gguf"
    hub.add("o/r", repo.files | {last: other[2].read_bytes() + bytes(32)})
    with pytest.raises(ChecksumError, match="insula lock --remove"):
        pull(NAME, retry=quick)


def test_files_of_this_machine(whole, files, tmp_path) -> None:
    store = ModelStore()
    manifest = take_file(files[1], None, store, None)  # whichever is named
    assert manifest.name == "m:Q4_K_M"
    assert len(manifest.parts) == 3
    for path in files:
        path.unlink()
    assert answer("m:Q4_K_M") == answer(whole)
    again = split(whole, tmp_path / "again")
    with pytest.raises(UnsupportedError, match="--in-place"):
        take_file(again[0], "x:1", store, None, in_place=True)
    again[2].unlink()
    with pytest.raises(NotFoundError, match="missing beside it"):
        take_file(again[0], "x:1", store, None)
    assert [m.name for m in store.scan()[0]] == ["m:Q4_K_M"]


def test_a_base_of_a_modelfile(whole, files, tmp_path) -> None:
    store = ModelStore()
    said = parse(f"FROM {files[0]}\nPARAMETER temperature 0\nSYSTEM Be brief.")
    first = create("mine", said, folder=tmp_path, store=store).manifest
    assert len(first.parts) == 3
    again = create("two", parse(write_modelfile(first, store)), folder=tmp_path, store=store)
    assert again.manifest.digest == first.digest
    upon = create("three", parse("FROM mine"), folder=tmp_path, store=store).manifest
    assert upon.digest == first.digest
    assert answer("three") == answer(whole)


def test_what_a_link_cannot_be_made_of(files, tmp_path, monkeypatch) -> None:
    """Where the file system has no hard links there are symbolic ones."""
    store = ModelStore()
    manifest = take_file(files[0], "a:1", store, None)

    def refuse(self: Path, target: Path) -> None:
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    first = store.path(manifest)
    assert not first.is_symlink()  # what is right stays
    first.unlink()
    assert store.path(manifest).is_symlink()
    assert answer("a:1")


def test_a_part_by_itself_is_no_model(hub, files, tmp_path, quick) -> None:
    """Under a name that does not say so, too; it could not run from the store."""
    lone = tmp_path / "renamed.gguf"
    lone.write_bytes(files[0].read_bytes())
    hub.blobs["renamed.gguf"] = lone.read_bytes()
    store = ModelStore()
    for in_place in (False, True):
        with pytest.raises(UnsupportedError, match=r"one of the 3 parts.*original names"):
            take_file(lone, None, store, None, in_place=in_place)
    with pytest.raises(UnsupportedError, match="one of the 3 parts"):
        pull(f"{hub.cdn}/renamed.gguf", retry=quick)
    hub.add_to_registry("library/part:latest", [("model", lone.read_bytes())])
    with pytest.raises(UnsupportedError, match="one of the 3 parts"):
        pull("ollama.com/library/part:latest", retry=quick)
    assert store.scan() == ([], [])


def test_a_bundle_of_one_part_is_refused(whole, files, tmp_path) -> None:
    store = ModelStore(tmp_path / "one")
    held = take_file(files[0], "m:1", store, None)
    store.add(replace(held, layers=()))  # as one who makes bundles by hand could
    bundle.export(["m:1"], tmp_path / "m.tar", store=store)
    other = ModelStore(tmp_path / "other")
    with pytest.raises(UnsupportedError, match="one of the 3 parts"):
        bundle.take(tmp_path / "m.tar", store=other)
    assert other.scan() == ([], [])
