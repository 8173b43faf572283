"""What is recommended, searched and known: numbers that follow from facts."""

from __future__ import annotations

import re

import pytest

from hub_server import status
from insula.errors import DownloadError, OfflineError
from insula.hub import known_models, recommend
from insula.hub.known_models import KNOWN
from insula.hub.names import HubRef, parse_hub_ref
from insula.hub.pull_file import take_file
from insula.hub.search import search
from insula.hub.store import ModelStore
from insula.models.registry import ARCHITECTURES
from tiny_chat_model import HEADS, LAYERS, WIDTH, write_tiny


def test_every_row_is_usable():
    assert len({model.name for model in KNOWN}) == len(KNOWN)
    for model in KNOWN:
        assert isinstance(parse_hub_ref(model.name), HubRef), model
        assert model.arch in ARCHITECTURES, model
        assert model.licence
        assert 512 <= model.context <= 1 << 17
        layers, heads, dim, width = model.shape
        assert 10 <= layers <= 100
        assert width % 64 == 0
        assert heads * dim <= width
        assert model.tokens is None or 1e12 <= model.tokens <= 50e12


@pytest.mark.parametrize(
    ("name", "size"),
    [
        # Published Q4_K_M files, in bytes, rounded.
        ("Llama-3.2-1B", 0.808e9),
        ("Llama-3.1-8B", 4.92e9),
        ("gemma-3-1b", 0.806e9),
        ("SmolLM2-135M", 0.105e9),
        ("Phi-3-mini", 2.39e9),
    ],
)
def test_estimates_of_a_file_are_near_the_real_one(name, size):
    (model,) = known_models.find(name)
    assert abs(model.q4_bytes / size - 1) < 0.1


def test_the_kv_cache_of_llama_3_1_8b():
    (model,) = known_models.find("Llama-3.1-8B")
    # 32 layers of 8 heads of 128, keys and values, 2 bytes each: 128 KiB a token.
    assert model.kv_per_token == 128 << 10


def test_finding_by_words():
    assert [m.repo for m in known_models.find("olmo 13b")] == ["allenai/OLMo-2-1124-13B-Instruct"]
    assert len(known_models.find("dolmino")) == 3
    assert known_models.find("nothing of the kind") == []
    assert len(known_models.find("")) == len(KNOWN)


def candidate(**changes) -> recommend.Candidate:
    values = {
        "name": "m",
        "here": True,
        "parameters": 1e9,
        "licence": None,
        "context": 8192,
        "weights": 1_000_000_000,
        "kv_per_token": 100_000,
    }
    return recommend.Candidate(**{**values, **changes})


def test_the_arithmetic():
    (row,) = recommend.advise(
        [candidate()], n_ctx=4096, available=2_000_000_000, bytes_per_second=20e9
    )
    assert row.needed == 1_000_000_000 + 409_600_000 + 100_000_000
    assert row.fits is True
    assert row.most_ctx == 8192  # (2.0 - 1.1) GB at 100 kB a token are 9000: more than trained for
    empty, full = row.tokens_per_second
    assert empty == pytest.approx(14.0)
    assert full == pytest.approx(14e9 / 1.4096e9)


def test_what_does_not_fit_comes_last():
    rows = recommend.advise(
        [
            candidate(name="huge", weights=9_000_000_000, parameters=9e9),
            candidate(name="small", parameters=1e8, weights=100_000_000),
            candidate(name="middle"),
        ],
        n_ctx=1024,
        available=1_500_000_000,
        bytes_per_second=None,
    )
    assert [row.candidate.name for row in rows] == ["middle", "small", "huge"]
    assert [row.fits for row in rows] == [True, True, False]
    assert rows[-1].most_ctx == 0
    assert rows[0].tokens_per_second is None


def test_a_context_is_at_most_what_it_was_trained_for_and_unknown_memory_is_said():
    (row,) = recommend.advise([candidate()], n_ctx=1 << 20, available=None, bytes_per_second=None)
    assert (row.n_ctx, row.fits, row.most_ctx) == (8192, None, None)


def test_models_of_the_store_are_measured_by_their_files(tmp_path):
    store = ModelStore()
    take_file(write_tiny(tmp_path / "tiny.gguf"), "tiny:1", store, None)
    (found,) = recommend.in_store(store)
    assert found.name == "tiny:1"
    assert found.kv_per_token == LAYERS * (HEADS // 2) * (WIDTH // HEADS) * 2 * 2
    assert found.context == 512
    store.path(store.get("tiny:1")).write_bytes(b"GGUF")
    assert recommend.in_store(store) == []


def test_searching_a_hub(hub, quick):
    hub.add("some-one/Nice-GGUF", {"m.gguf": b"GGUF"})
    hub.add("other/nice", {"model.safetensors": b"x"})
    (found,) = search("nice", retry=quick)
    assert found.name == "hf.co/some-one/Nice-GGUF"
    assert found.licence == "apache-2.0"
    assert (found.downloads, found.likes, found.gated) == (1001, 7, False)
    asked = hub.seen[0].path
    assert re.search(r"/api/models\?search=nice&filter=gguf&sort=downloads", asked)


def test_a_hub_that_answers_nonsense(hub, quick):
    for body in (b"{}", b"<html>", b'"x"'):
        hub.api_faults += [lambda handler, body=body: handler.reply(200, body) or True]
        with pytest.raises(DownloadError):
            search("x", retry=quick)
    rows = b'[{"id": "../../x"}, {"id": "a/b\\u001b[2J"}, {"id": 3}, 7, {"id": "a/b"}]'
    hub.api_faults += [lambda handler: handler.reply(200, rows) or True]
    assert [found.repo for found in search("x", retry=quick)] == ["a/b"]
    hub.api_faults += [status(503), status(429, {"Retry-After": "0"})]
    assert search("x", retry=quick) == []


def test_searching_offline(quick, monkeypatch):
    monkeypatch.setenv("INSULA_OFFLINE", "1")
    with pytest.raises(OfflineError):
        search("x", retry=quick)
