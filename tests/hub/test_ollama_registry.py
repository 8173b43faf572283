"""ollama.com/library/name:tag, end to end against a registry on the loopback."""

from __future__ import annotations

import hashlib
import json

import pytest

from hub_server import die_after, hang_up, other_bytes, status
from insula.errors import (
    ChecksumError,
    ConfigError,
    DownloadError,
    FormatError,
    NotFoundError,
    OfflineError,
    UnsupportedError,
)
from insula.hub import defaults
from insula.hub.pull import pull
from insula.hub.resolve import locate
from insula.hub.store import ModelStore

WEIGHTS = b"GGUF" + b"weights" * 5000
LICENCE = b"\nApache License\nVersion 2.0\n"
GO = b"{{ if .System }}<|start|>system\n{{ .System }}{{ end }}{{ .Prompt }}"
NAME = "ollama.com/library/small:1b"


@pytest.fixture
def registry(hub):
    hub.add_to_registry(
        "library/small:1b",
        [
            ("model", WEIGHTS),
            ("template", GO),
            ("system", b"Be brief."),
            ("params", json.dumps({"stop": ["<|end|>"], "num_ctx": 256, "num_gpu": 1}).encode()),
            ("messages", json.dumps([{"role": "user", "content": "hi"}]).encode()),
            ("license", LICENCE),
        ],
    )
    return hub


@pytest.mark.parametrize(
    "name",
    [
        NAME,
        "ollama.com/small:1b",
        "registry.ollama.ai/library/small:1b",
        "https://ollama.com/library/small:1b",
    ],
)
def test_a_model_with_all_that_it_brings(registry, quick, name):
    manifest = pull(name, retry=quick)
    store = ModelStore()
    assert manifest.name == NAME
    assert store.path(manifest).read_bytes() == WEIGHTS
    assert manifest.licence == "Apache License"
    assert manifest.source == f"{registry.endpoint}/v2/library/small:1b"
    (layer,) = manifest.layers
    assert store.blob_path(layer.sha256).read_bytes() == LICENCE
    assert manifest.defaults.system == "Be brief."
    assert manifest.defaults.messages == (("user", "hi"),)
    own = defaults.of(store.get(NAME))
    assert own.meaning.n_ctx == 256
    assert own.meaning.sampling.stop == ("<|end|>",)
    assert own.template == GO.decode()
    assert len(own.notes) == 1
    assert "num_gpu" in own.notes[0]
    assert locate(name).manifest == manifest
    assert locate("ollama.com/library/small:1b").path == store.path(manifest)


def test_what_is_here_is_not_fetched_again(registry, quick):
    first = pull(NAME, retry=quick)
    before = [s.path for s in registry.bytes_requests()]
    assert pull(NAME, retry=quick).digest == first.digest
    sha = hashlib.sha256(WEIGHTS).hexdigest()
    assert sum(sha in path for path in before) == 1
    assert sum(sha in s.path for s in registry.bytes_requests()) == 1


def test_two_models_share_their_weights(registry, quick):
    registry.add_to_registry(
        "someone/other:latest", [("model", WEIGHTS), ("system", b"Be long."), ("license", LICENCE)]
    )
    store = ModelStore()
    one, two = pull(NAME, retry=quick), pull("ollama.com/someone/other", retry=quick)
    assert two.name == "ollama.com/someone/other:latest"
    assert store.path(one) == store.path(two)
    assert store.references()[one.sha256] == 2
    assert store.remove(NAME).freed == 0
    assert store.remove(two.name).freed == len(WEIGHTS) + len(LICENCE)
    assert list(store.blobs.iterdir()) == []


def test_a_new_tag_replaces_the_old_meaning(registry, quick):
    pull(NAME, retry=quick)
    registry.add_to_registry("library/small:1b", [("model", b"GGUF new")])
    manifest = pull(NAME, retry=quick)
    assert ModelStore().path(manifest).read_bytes() == b"GGUF new"
    assert ModelStore().get(NAME).defaults.system is None


@pytest.mark.parametrize(
    "faults",
    [[status(503)], [status(429, {"Retry-After": "0"})], [hang_up], [die_after(3), die_after(2)]],
)
def test_faults_of_the_bytes_are_overcome(registry, quick, faults):
    registry.faults += faults
    assert ModelStore().path(pull(NAME, retry=quick)).read_bytes() == WEIGHTS


@pytest.mark.parametrize("nth", range(6))
def test_wrong_bytes_in_any_layer_leave_nothing(registry, quick, nth):
    registry.faults += [*[lambda handler: False] * nth, other_bytes(b"GGUF something else")]
    with pytest.raises((ChecksumError, DownloadError)):
        pull(NAME, retry=quick)
    store = ModelStore()
    assert store.scan() == ([], [])


def test_wrong_weights_of_the_right_size(registry, quick):
    fault = other_bytes(bytes(len(WEIGHTS)))
    # Five settings and the licence come first.
    registry.faults += [*[lambda handler: False] * 6, *[fault] * 3]
    with pytest.raises(ChecksumError, match="sha256"):
        pull(NAME, retry=quick)
    assert ModelStore().scan() == ([], [])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ollama.com/library/none", NotFoundError),
        ("ollama.com/library/../../etc/passwd", ConfigError),
        ("ollama.com/library/..%2f:x", ConfigError),
        ("https://ollama.com/library/a%2f..%2f..", ConfigError),
        ("ollama.com/a/b/c", ConfigError),
        ("ollama.com/library/x:", ConfigError),
        ("ollama.com/library/x\0", ConfigError),
        ("ollama.com/", ConfigError),
    ],
)
def test_names_that_name_nothing(registry, quick, name, kind):
    with pytest.raises(kind):
        pull(name, retry=quick)
    assert not any(".." in seen.path for seen in registry.seen)


@pytest.mark.parametrize(
    ("layers", "kind", "says"),
    [
        ([("model", b"<html>"), ("system", b"x")], FormatError, "not a GGUF file"),
        ([("system", b"x")], UnsupportedError, "0 files of weights"),
        ([("model", b"GGUF1"), ("model", b"GGUF2")], UnsupportedError, "2 files of weights"),
        ([("model", b"GGUF"), ("tensor", b"x")], UnsupportedError, "'tensor'"),
        ([("model", b"GGUF"), ("params", b"[]")], DownloadError, "not what"),
        ([("model", b"GGUF"), ("params", b'{"stop": {}}')], DownloadError, "not what"),
        ([("model", b"GGUF"), ("messages", b'[{"role": "x"}]')], DownloadError, "not what"),
        ([("model", b"GGUF"), ("system", b"\xff")], DownloadError, "not what"),
        ([("model", b"GGUF"), ("params", b"[" * 100_000)], DownloadError, "not what"),
    ],
)
def test_models_that_are_none(hub, quick, layers, kind, says):
    hub.add_to_registry("library/bad:latest", layers)
    with pytest.raises(kind, match=says):
        pull("ollama.com/library/bad", retry=quick)
    assert ModelStore().scan() == ([], [])


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(layers=None),
        lambda m: m["layers"][0].update(digest="sha256:../../x"),
        lambda m: m["layers"][0].update(size=-1),
        lambda m: m["layers"][0].update(size="1"),
        lambda m: m.update(layers=m["layers"] * 100),
        lambda m: m.clear(),
    ],
)
def test_a_server_that_is_no_registry(registry, quick, change):
    change(registry.registry["library/small:1b"])
    with pytest.raises(DownloadError, match="INSULA_OLLAMA_REGISTRY"):
        pull(NAME, retry=quick)


def test_a_layer_that_is_announced_as_huge_is_not_read_into_memory(registry, quick):
    registry.registry["library/small:1b"]["layers"][1]["size"] = 1 << 40
    with pytest.raises(DownloadError, match="too large"):
        pull(NAME, retry=quick)


def test_a_login_is_not_spoken_of_as_huggingfaces(registry, quick):
    registry.api_faults += [status(401)]
    with pytest.raises(DownloadError) as caught:
        pull(NAME, retry=quick)
    assert "HF_TOKEN" not in str(caught.value)


def test_the_hubs_token_does_not_go_there(registry, quick, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    pull(NAME, retry=quick)
    assert not any("Authorization" in seen.headers for seen in registry.seen)


def test_nobody_there(quick, monkeypatch):
    monkeypatch.setenv("INSULA_OLLAMA_REGISTRY", "http://127.0.0.1:1")
    with pytest.raises(OfflineError):
        pull(NAME, retry=quick)
    monkeypatch.setenv("INSULA_OLLAMA_REGISTRY", "ftp://x")
    with pytest.raises(ConfigError, match="INSULA_OLLAMA_REGISTRY"):
        pull(NAME, retry=quick)


def test_an_empty_template_is_none(hub, quick):
    hub.add_to_registry("library/x:latest", [("model", b"GGUF"), ("template", b" \n")])
    own = defaults.of(pull("ollama.com/library/x", retry=quick))
    assert (own.template, own.notes) == (None, ())


def test_an_adapter_and_a_projector_are_kept(hub, quick):
    hub.add_to_registry("library/eyes:latest", [("model", b"GGUF"), ("projector", b"GGUF eyes")])
    hub.add_to_registry("library/lora:latest", [("model", b"GGUF"), ("adapter", b"GGUF lora")])
    eyes = pull("ollama.com/library/eyes", retry=quick)
    store = ModelStore()
    assert store.blob_path(eyes.layers[0].sha256).read_bytes() == b"GGUF eyes"
    assert "images" in defaults.of(eyes).notes[0]
    lora = pull("ollama.com/library/lora", retry=quick)
    assert locate(lora.name).adapter.read_bytes() == b"GGUF lora"
