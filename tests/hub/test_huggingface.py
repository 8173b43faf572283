"""hf.co/owner/repo[:quant], end to end against a hub on the loopback."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from hub_server import COMMIT, die_after, other_bytes, status
from insula.errors import (
    ChecksumError,
    ConfigError,
    DownloadError,
    FormatError,
    NotFoundError,
    OfflineError,
)
from insula.hub.huggingface import quant_of, token
from insula.hub.pull import pull
from insula.hub.resolve import locate
from insula.hub.store import ModelStore

FILES = {
    "README.md": b"# a model",
    "model-Q2_K.gguf": b"GGUF q2",
    "model-Q4_K_M.gguf": b"GGUF q4" * 1000,
    "model-Q8_0.gguf": b"GGUF q8" * 2000,
    "mmproj-model-F16.gguf": b"GGUF eyes",
    "model-F16-00001-of-00002.gguf": b"GGUF head",
    "model-F16-00002-of-00002.gguf": b"tail",
}


@pytest.fixture
def repo(hub):
    return hub.add("some-One/Model.v2-GGUF", dict(FILES))


def test_the_default_quantization_arrives(hub, repo, quick):
    phases = []
    manifest = pull(
        "hf.co/some-One/Model.v2-GGUF", retry=quick, progress=lambda e: phases.append(e.phase)
    )
    assert manifest.name == "hf.co/some-One/Model.v2-GGUF:Q4_K_M"
    assert manifest.licence == "apache-2.0"
    assert manifest.source == f"{hub.endpoint}/some-One/Model.v2-GGUF@{COMMIT}:model-Q4_K_M.gguf"
    assert ModelStore().path(manifest).read_bytes() == FILES["model-Q4_K_M.gguf"]
    assert phases[0] == "connect"
    assert phases[-1] == "done"
    assert {s.path.partition("?")[0].split("/")[1] for s in hub.seen if s.side == "hub"} == {
        "api",
        "some-One",
    }


@pytest.mark.parametrize("asked", ["Q8_0", "q8_0"])
def test_an_exact_quantization(repo, quick, asked):
    manifest = pull(f"hf.co/some-One/Model.v2-GGUF:{asked}", retry=quick)
    assert manifest.name.endswith(":Q8_0")
    assert locate(f"hf.co/some-One/Model.v2-GGUF:{asked}").path.read_bytes() == b"GGUF q8" * 2000
    assert locate("hf.co/some-One/Model.v2-GGUF").manifest == manifest


def test_a_file_by_its_name_or_address(hub, repo, quick):
    by_name = pull("hf.co/some-One/Model.v2-GGUF/model-Q2_K.gguf", retry=quick)
    assert by_name.name == "hf.co/some-One/Model.v2-GGUF:model-Q2_K"
    address = "https://huggingface.co/some-One/Model.v2-GGUF/resolve/main/model-Q2_K.gguf"
    assert pull(address, retry=quick).sha256 == by_name.sha256
    assert len(hub.bytes_requests()) == 1  # the bytes were there


def test_a_missing_quantization_lists_what_there_is(repo, quick):
    with pytest.raises(NotFoundError) as caught:
        pull("hf.co/some-One/Model.v2-GGUF:Q5_0", retry=quick)
    message = str(caught.value)
    assert "Q2_K (0 MB), F16 (0 MB, split in 2 files), Q4_K_M" in message
    assert "mmproj" not in message


def test_parts_that_are_no_models_are_not_kept(repo, quick):
    with pytest.raises(FormatError):
        pull("hf.co/some-One/Model.v2-GGUF:F16", retry=quick)
    store = ModelStore()
    assert not [path for path in store.root.rglob("*") if path.is_file()]


def test_no_default_among_several_is_a_list(hub, quick):
    hub.add("o/r", {"m.Q3_K_S.gguf": b"GGUF", "m.Q6_K.gguf": b"GGUF6"})
    with pytest.raises(NotFoundError, match=r"no Q4_K_M.*Q3_K_S.*Q6_K"):
        pull("hf.co/o/r", retry=quick)


def test_the_only_one_needs_no_name(hub, quick):
    hub.add("o/r", {"strange name.gguf": b"GGUF strange"})
    manifest = pull("hf.co/o/r", retry=quick)
    assert manifest.file == "strange name.gguf"
    assert locate(manifest.name).path.read_bytes() == b"GGUF strange"


def test_the_same_quantization_twice(hub, quick):
    hub.add("o/r", {"m-Q4_K_M.gguf": b"GGUF top", "old/m-Q4_K_M.gguf": b"GGUF old"})
    assert pull("hf.co/o/r", retry=quick).file == "m-Q4_K_M.gguf"
    hub.add("o/two", {"a-Q4_K_M.gguf": b"GGUF a", "b-Q4_K_M.gguf": b"GGUF b"})
    with pytest.raises(NotFoundError, match="several"):
        pull("hf.co/o/two", retry=quick)


def test_no_gguf_at_all(hub, quick):
    hub.add("o/r", {"model.safetensors": b"x"})
    with pytest.raises(NotFoundError, match="-GGUF"):
        pull("hf.co/o/r", retry=quick)


def test_a_repository_that_is_not_there(hub, quick):
    with pytest.raises(NotFoundError, match="404"):
        pull("hf.co/nobody/nothing", retry=quick)


def test_a_private_repository(hub, repo, quick, monkeypatch):
    hub.token = "hf_right"
    with pytest.raises(DownloadError, match="HF_TOKEN"):
        pull("hf.co/some-One/Model.v2-GGUF", retry=quick)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert pull("hf.co/some-One/Model.v2-GGUF", retry=quick).size == 7000
    assert all("Authorization" not in seen.headers for seen in hub.bytes_requests())


def test_a_hub_cannot_send_the_token_elsewhere(hub, repo, quick, monkeypatch):
    """A next page on another host is asked for without it."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    link = {"Link": f'<{hub.cdn}/next>; rel="next"'}
    hub.api_faults += [
        lambda handler: False,
        lambda handler: handler.reply(200, b"[]", link) or True,
    ]
    with pytest.raises(NotFoundError):
        pull("hf.co/some-One/Model.v2-GGUF", retry=quick)
    assert [seen.side for seen in hub.seen] == ["hub", "hub", "cdn"]
    assert hub.seen[0].headers["Authorization"] == "Bearer hf_secret"
    assert "Authorization" not in hub.seen[2].headers


def test_a_repository_that_moved(hub, repo, quick):
    hub.add("old/name", {}, moved_to="some-One/Model.v2-GGUF")
    manifest = pull("hf.co/old/name:Q8_0", retry=quick)
    assert manifest.name == "hf.co/old/name:Q8_0"
    assert "some-One/Model.v2-GGUF@" in manifest.source


def test_a_hub_with_troubles(hub, repo, quick):
    hub.api_faults += [status(429, {"Retry-After": "0"}), status(503)]
    hub.faults += [status(500), die_after(3000), status(429)]
    assert pull("hf.co/some-One/Model.v2-GGUF", retry=quick).size == 7000


def test_wrong_bytes_never_enter_the_store(hub, repo, quick):
    hub.faults += [other_bytes(b"x" * 7000)]
    with pytest.raises(ChecksumError):
        pull("hf.co/some-One/Model.v2-GGUF", retry=quick)
    assert ModelStore().scan() == ([], [])
    assert list(ModelStore().blobs.iterdir()) == []
    assert list(ModelStore().partial.iterdir()) == []


def test_without_a_published_digest_the_size_still_holds(hub, quick):
    hub.add("o/r", {"m.gguf": b"GGUF" * 100}, lfs=False)
    manifest = pull("hf.co/o/r", retry=quick)
    assert manifest.sha256 == hashlib.sha256(b"GGUF" * 100).hexdigest()


def test_a_second_pull_moves_no_bytes(hub, repo, quick):
    first = pull("hf.co/some-One/Model.v2-GGUF", retry=quick)
    count = len(hub.bytes_requests())
    assert pull("hf.co/some-One/Model.v2-GGUF", retry=quick).sha256 == first.sha256
    assert len(hub.bytes_requests()) == count


def test_a_damaged_blob_is_replaced(hub, repo, quick):
    manifest = pull("hf.co/some-One/Model.v2-GGUF", retry=quick)
    blob = ModelStore().path(manifest)
    blob.write_bytes(b"short")
    pull("hf.co/some-One/Model.v2-GGUF", retry=quick)
    assert blob.read_bytes() == FILES["model-Q4_K_M.gguf"]


def test_offline_names_the_host(quick, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(OfflineError, match=r"127\.0\.0\.1"):
        pull("hf.co/o/r", retry=quick)


@pytest.mark.parametrize("value", ["nonsense", "ftp://x", "http://", "http://a b"])
def test_a_bad_endpoint(quick, monkeypatch, value):
    monkeypatch.setenv("HF_ENDPOINT", value)
    with pytest.raises(ConfigError, match="HF_ENDPOINT"):
        pull("hf.co/o/r", retry=quick)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"sha":"../.."}', b"[" * 200_000])
def test_something_that_is_no_hub(hub, quick, body):
    hub.api_faults += [lambda handler: handler.reply(200, body) or True] * 3
    with pytest.raises(DownloadError, match="HF_ENDPOINT"):
        pull("hf.co/o/r", retry=quick)


def test_an_endless_answer_is_cut_off(hub, quick, monkeypatch):
    monkeypatch.setattr("insula.hub.transport.MAX_DOCUMENT", 1000)
    hub.api_faults += [lambda handler: handler.reply(200, b" " * 5000) or True]
    with pytest.raises(DownloadError, match="too large"):
        pull("hf.co/o/r", retry=quick)


@pytest.mark.parametrize(
    ("path", "quant"),
    [
        ("Qwen3-0.6B-Q8_0.gguf", "Q8_0"),
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "Q4_1"),
        ("smollm2-135m-instruct-q4_k_m.gguf", "Q4_K_M"),
        ("Llama-3.2-1B-Instruct-IQ4_XS.gguf", "IQ4_XS"),
        ("gemma-3-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("BF16/model-BF16-00001-of-00003.gguf", "BF16"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("model.TQ1_0.gguf", "TQ1_0"),
        ("model-f16.gguf", "F16"),
        ("Q8_0/model.gguf", "Q8_0"),
        ("qwen2.5-0.5b.gguf", None),
    ],
)
def test_quantizations_in_file_names(path, quant):
    assert quant_of(path) == quant


def test_the_token_of_the_hubs_own_login(tmp_path, monkeypatch):
    assert token() is None
    (tmp_path / "token").write_text("hf_file\n")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert token() == "hf_file"
    monkeypatch.setenv("HF_TOKEN", "hf_env")
    assert token() == "hf_env"


def test_the_server_of_these_tests_speaks_the_hubs_language(hub, repo, tmp_path, monkeypatch):
    """The hub's own client is content with it."""
    client = pytest.importorskip("huggingface_hub", reason="the hub's client is not installed")
    api = client.HfApi(endpoint=hub.endpoint, token=False)
    info = api.model_info("some-One/Model.v2-GGUF", revision="main")
    assert info.sha == COMMIT
    assert info.card_data.license == "apache-2.0"
    tree = api.list_repo_tree("some-One/Model.v2-GGUF", revision=COMMIT, recursive=True)
    found = {item.path: item.lfs.sha256 for item in tree}
    assert found == {path: hashlib.sha256(data).hexdigest() for path, data in FILES.items()}
    path = client.hf_hub_download(
        "some-One/Model.v2-GGUF",
        "model-Q8_0.gguf",
        endpoint=hub.endpoint,
        cache_dir=tmp_path / "cache",
        token=False,
    )
    assert Path(path).read_bytes() == FILES["model-Q8_0.gguf"]
