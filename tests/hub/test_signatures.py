"""Signatures where a key is configured: minisign's own, and everything that is not one."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from insula.errors import ChecksumError, ConfigError, DownloadError
from insula.hub import signatures
from insula.hub.pull import pull
from insula.hub.pull_file import take_file
from insula.hub.store import ModelStore

# The key of minisign's documentation, and a signature over the four bytes "test" that was made with
# its secret half: from the README of the crate minisign-verify, by minisign's author.
KEY = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3"
SIGNATURE = b"""untrusted comment: signature from minisign secret key
RUQf6LRCGA9i559r3g7V1qNyJDApGip8MfqcadIgT9CuhV3EMhHoN1mGTkUidF/z7SrlQgXdy8ofjb7bNJJylDOocrCo8KLzZwo=
trusted comment: timestamp:1556193335\tfile:test
y/rUw2y8/hOUYjZU71eHp/Wo1KZ40fGy2VJEDl34XMJM+TX48Ss/17u3IvIfbVR1FkZZSNCisQbuQY+bHwhEBg==
"""
LEGACY = b"""untrusted comment: signature from minisign secret key
RWQf6LRCGA9i59SLOFxz6NxvASXDJeRtuZykwQepbDEGt87ig1BNpWaVWuNrm73YiIiJbq71Wi+dP9eKL8OC351vwIasSSbXxwA=
trusted comment: timestamp:1555779966\tfile:test
QtKMXWyYcwdpZAlPF7tE2ENJkRd1ujvKjlj1m9RtHTBnZPa5WKU5uWRs5GoP5M/VqE81QFuMKI5k/SfNQUaOAA==
"""


def trust(home: Path, *lines: str) -> None:
    home.mkdir(exist_ok=True)
    (home / "trusted_keys").write_text("# who signs what\n\n" + "\n".join(lines) + "\n")


def test_a_real_signature(home, tmp_path):
    trust(home, f"{KEY} file:{tmp_path}")
    file = tmp_path / "test"
    file.write_bytes(b"test")
    (tmp_path / "test.minisig").write_bytes(SIGNATURE)
    signature = signatures.wanted_beside(file)
    signature.check_file(file)
    file.write_bytes(b"Test")
    with pytest.raises(ChecksumError, match="not made over these bytes"):
        signature.check_file(file)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda s: s.replace(b"1556193335", b"1556193336"), ChecksumError),
        (lambda s: s.replace(b"559r3g", b"559r3h"), ChecksumError),
        (lambda s: s.split(b"trusted")[0], DownloadError),
        (lambda s: b"", DownloadError),
        (lambda s: b"\xff\n" * 4, DownloadError),
        (lambda s: LEGACY, DownloadError),
    ],
)
def test_a_signature_that_is_none(home, tmp_path, change, problem):
    trust(home, f"{KEY} *")
    file = tmp_path / "test"
    file.write_bytes(b"test")
    with pytest.raises(problem):
        signatures.parse(change(SIGNATURE), "x", signatures.needed("x")).check_file(file)


def test_another_key_does_not_do(home, tmp_path):
    raw = bytearray(base64.b64decode(KEY))
    raw[-1] ^= 1
    trust(home, f"{base64.b64encode(raw).decode()} *")
    file = tmp_path / "test"
    file.write_bytes(b"test")
    (tmp_path / "test.minisig").write_bytes(SIGNATURE)
    with pytest.raises(ChecksumError):
        signatures.wanted_beside(file).check_file(file)


def test_nobody_needs_one_without_a_key(home, tmp_path):
    assert signatures.wanted_beside(tmp_path / "m.gguf") is None
    trust(home, f"{KEY} https://models.example.org/")
    assert signatures.needed("https://other.example.org/m.gguf") == ()
    assert len(signatures.needed("HTTPS://Models.Example.ORG/m.gguf")) == 1


def test_what_a_key_covers_is_refused_without_one(home, hub, quick, tmp_path):
    trust(home, f"{KEY} *")
    hub.blobs["m.gguf"] = b"GGUF signed by nobody"
    hub.add("o/r", {"m.gguf": b"GGUF signed by nobody"})
    (tmp_path / "m.gguf").write_bytes(b"GGUF signed by nobody")
    for name in (
        f"{hub.cdn}/x/m.gguf",
        "hf.co/o/r",
        "ollama.com/library/x",
        "pypi:project==1.0",
        str(tmp_path / "m.gguf"),
    ):
        with pytest.raises(ChecksumError, match="must be signed"):
            pull(name, retry=quick)
    assert ModelStore().scan() == ([], [])


def test_a_wrong_signature_leaves_nothing(home, hub, quick, tmp_path):
    trust(home, f"{KEY} *")
    hub.blobs |= {"m.gguf": b"GGUF other", "m.gguf.minisig": SIGNATURE}
    hub.add("o/r", {"m.gguf": b"GGUF other", "m.gguf.minisig": SIGNATURE})
    (tmp_path / "m.gguf").write_bytes(b"GGUF other")
    (tmp_path / "m.gguf.minisig").write_bytes(SIGNATURE)
    for name in (f"{hub.cdn}/x/m.gguf", "hf.co/o/r", str(tmp_path / "m.gguf")):
        with pytest.raises(ChecksumError, match="not made over these bytes"):
            pull(name, retry=quick)
    store = ModelStore()
    assert store.scan() == ([], [])
    assert not [p for p in store.root.rglob("*") if p.is_file()]


@pytest.mark.parametrize("line", ["RWQ *", KEY, f"{KEY} a b", "not/base64! *"])
def test_a_bad_line_is_named(home, tmp_path, line):
    trust(home, line)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match="line 3"):
        take_file(tmp_path / "m.gguf", None, ModelStore(), None)


def test_keys_that_were_asked_for_must_be_there(monkeypatch, tmp_path):
    monkeypatch.setenv("INSULA_TRUSTED_KEYS", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="not there"):
        signatures.trusted_keys()
