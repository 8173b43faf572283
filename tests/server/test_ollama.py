"""Ollama's own client against the server."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import ollama
import pytest

from insula import LLM

MESSAGES = [{"role": "user", "content": "the cat sat on the mat"}]
FIXED = {"num_predict": 10, "seed": 4}


@pytest.fixture
def client(served) -> Iterator[ollama.Client]:
    made = ollama.Client(host=served.url)
    yield made
    made._client.close()


@pytest.fixture(scope="module")
def llm(files: dict[str, Path]) -> Iterator[LLM]:
    with LLM(files["tiny"]) as loaded:
        yield loaded


def test_somebody_is_there(served):
    assert served.http.get("/").text == "Insula is running"
    assert served.http.head("/").status_code == 200
    assert served.http.get("/api/version").json()["insula"]


def test_a_chat_whole_and_streamed(client, llm):
    own = llm.chat(MESSAGES, max_tokens=10, seed=4)
    whole = client.chat("tiny", MESSAGES, options=FIXED)
    assert whole.message.content == own.text
    assert whole.done
    assert whole.done_reason == "length"
    assert whole.prompt_eval_count == own.report.prompt_tokens
    assert whole.eval_count == 10
    assert whole.total_duration >= whole.prompt_eval_duration + whole.eval_duration > 0
    pieces = list(client.chat("tiny", MESSAGES, options=FIXED, stream=True))
    assert "".join(piece.message.content for piece in pieces) == own.text
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert pieces[-1].eval_count == 10


def test_it_streams_unless_told_not_to(served):
    answer = served.http.post(
        "/api/chat", json={"model": "tiny", "messages": MESSAGES, "options": FIXED}
    )
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert json.loads(answer.text.splitlines()[-1])["done"]


def test_generate_goes_through_the_template_unless_raw(client, llm):
    prompt = "the cat sat on the mat"
    own = llm.chat(MESSAGES, max_tokens=10, seed=4).text
    assert client.generate("tiny", prompt, options=FIXED).response == own
    raw = client.generate("tiny", prompt, raw=True, options=FIXED).response
    assert raw == llm.generate(prompt, max_tokens=10, seed=4).text
    system = client.generate("tiny", prompt, system="be a cat", options=FIXED).response
    spoken = [{"role": "system", "content": "be a cat"}, *MESSAGES]
    assert system == llm.chat(spoken, max_tokens=10, seed=4).text
    pieces = client.generate("tiny", prompt, options=FIXED, stream=True)
    assert "".join(piece.response for piece in pieces) == own


def test_the_asynchronous_client(served, llm):
    own = llm.chat(MESSAGES, max_tokens=10, seed=4).text

    async def ask() -> tuple[str, str]:
        client = ollama.AsyncClient(host=served.url)
        whole = await client.chat("tiny", MESSAGES, options=FIXED)
        stream = await client.chat("tiny", MESSAGES, options=FIXED, stream=True)
        said = "".join([piece.message.content async for piece in stream])
        await client._client.aclose()
        return whole.message.content, said

    assert asyncio.run(ask()) == (own, own)


def test_logprobs(client, llm):
    own = llm.chat(MESSAGES, max_tokens=3, temperature=0, logprobs=2).logprobs
    options = {"num_predict": 3, "temperature": 0}
    found = client.chat("tiny", MESSAGES, options=options, logprobs=True, top_logprobs=2)
    assert [entry.logprob for entry in found.logprobs] == [entry.logprob for entry in own]
    assert [top.logprob for top in found.logprobs[0].top_logprobs] == [p for *_, p in own[0].top]


def test_what_is_not_used_is_said_and_what_is_not_there_refused(client, served):
    asked = {"model": "tiny", "messages": MESSAGES, "stream": False}
    options = {**FIXED, "num_gpu": 1, "num_thread": 2}
    answer = served.http.post("/api/chat", json={**asked, "options": options}).json()
    assert [note.split()[0] for note in answer["notes"]] == [
        "options.num_gpu",
        "options.num_thread",
    ]
    for wrong, named in (
        ({"tfs_z": 1}, "tfs_z"),
        ({"mirostat": 1}, "mirostat"),
        ({"top_p": 3}, "top_p"),
        ({"num_ctx": 4096}, "num_ctx"),
        ({"num_predict": "many"}, "num_predict"),
    ):
        with pytest.raises(ollama.ResponseError, match=named) as caught:
            client.chat("tiny", MESSAGES, options={"num_predict": 1, **wrong})
        assert caught.value.status_code == 400
    for wrong, said in (
        ({"format": {"type": 5}}, "constraint"),
        ({"think": True}, "think"),
        ({"tools": [{"type": "function"}]}, "tools"),
    ):
        with pytest.raises(ollama.ResponseError, match=said) as caught:
            client.chat("tiny", MESSAGES, options=FIXED, **wrong)
        assert caught.value.status_code == 400
    with pytest.raises(ollama.ResponseError, match="suffix"):
        client.generate("tiny", "a", suffix="b", options=FIXED)


def test_a_long_conversation_loses_its_oldest_turns_and_says_so(client, served):
    turns = [
        {"role": role, "content": "the cat sat on the mat and the dog ran " * 2}
        for _ in range(12)
        for role in ("user", "assistant")
    ]
    asked = {"model": "tiny", "messages": [*turns, *MESSAGES], "options": FIXED, "stream": False}
    answer = served.http.post("/api/chat", json=asked).json()
    assert answer["prompt_eval_count"] <= 512
    assert any("were left out" in note for note in answer["notes"])
    refused = served.http.post("/api/chat", json={**asked, "truncate": False})
    assert refused.status_code == 400
    assert "512" in refused.json()["error"]


def test_embed_and_its_older_form(client, files):
    texts = ["the cat sat", "a dog ran"]
    with LLM(files["encoder"]) as encoder:
        own = encoder.embed(texts).vectors
    found = client.embed("encoder", texts)
    assert np.array_equal(np.array(found.embeddings, np.float32), own)
    assert found.prompt_eval_count > 4
    assert np.array_equal(
        np.array(client.embed("encoder", texts[1]).embeddings, np.float32)[0], own[1]
    )
    old = client.embeddings("encoder", texts[0])
    assert np.array_equal(np.array(old.embedding, np.float32), own[0])
    assert client.embed("encoder", "cat " * 400).embeddings  # cut, as Ollama does
    with pytest.raises(ollama.ResponseError, match="160"):
        client.embed("encoder", "cat " * 400, truncate=False)


def test_what_there_is(client, files):
    listed = {model.model: model for model in client.list().models}
    assert set(files) <= set(listed)
    assert listed["tiny"].size == files["tiny"].stat().st_size
    assert listed["tiny"].details.family == "llama"
    assert listed["encoder"].details.family == "bert"
    shown = client.show("tiny")
    assert shown.capabilities == ["completion", "tools"]
    assert shown.template.startswith("{% for message")
    assert shown.modelinfo["llama.context_length"] == 512
    assert shown.license == "apache-2.0"
    assert client.show("encoder").capabilities == ["embedding"]
    with pytest.raises(ollama.ResponseError) as caught:
        client.show("nobody")
    assert caught.value.status_code == 404


def test_bring_a_model_and_let_it_go(client, served):
    assert client.chat("tiny", [], keep_alive="1h30m").done_reason == "load"
    [entry] = [model for model in client.ps().models if model.model == "tiny"]
    assert entry.context_length == 512
    assert client.generate("tiny", "", keep_alive=0).done_reason == "unload"
    assert "tiny" not in [model.model for model in client.ps().models]
    client.generate("tiny", "hi", options={"num_predict": 1}, keep_alive=-1)
    [entry] = [model for model in client.ps().models if model.model == "tiny"]
    assert entry.expires_at.year == 9999
    with pytest.raises(ollama.ResponseError, match="keep_alive"):
        client.generate("tiny", "hi", keep_alive="soon")


def test_upload_create_copy_delete(client, served, files, home):
    """A model's whole life in the store, by Ollama's own calls."""
    digest = client.create_blob(files["tiny"])
    assert digest == f"sha256:{hashlib.sha256(files['tiny'].read_bytes()).hexdigest()}"
    made = list(
        client.create(
            "mine",
            files={"tiny.gguf": digest},
            system="be a cat",
            parameters={"temperature": 0, "num_predict": 6},
            stream=True,
        )
    )
    assert made[-1].status == "success"
    asked = served.http.post(
        "/api/chat", json={"model": "mine", "messages": MESSAGES, "stream": False}
    ).json()
    with LLM(files["tiny"]) as llm:
        spoken = [{"role": "system", "content": "be a cat"}, *MESSAGES]
        own = llm.chat(spoken, temperature=0, max_tokens=6).text
    assert asked["message"]["content"] == own
    assert asked["model"] == "mine:latest"
    client.copy("mine", "yours")
    assert client.show("yours").template == client.show("mine").template
    client.create("louder", from_="mine", parameters={"num_predict": 2})
    assert client.chat("louder", MESSAGES).eval_count == 2
    for name in ("mine", "yours", "louder"):
        client.delete(name)
    with pytest.raises(ollama.ResponseError) as caught:
        client.chat("mine", MESSAGES)
    assert caught.value.status_code == 404
    assert not list((home / "models" / "manifests").rglob("*.json"))


def test_no_blob_under_a_digest_that_is_not_its_own(served):
    wrong = "sha256:" + "0" * 64
    assert served.http.post(f"/api/blobs/{wrong}", content=b"abc").status_code == 400
    assert served.http.head(f"/api/blobs/{wrong}").status_code == 404
    assert served.http.post("/api/blobs/..%2F..%2Fx", content=b"abc").status_code in (400, 404)


@pytest.mark.parametrize(
    "name", ["http://127.0.0.1:9/x.gguf", "/etc/passwd", "../x", "pypi:a==1", "a/b/c/d/e"]
)
def test_a_client_has_no_address_or_path_fetched(client, name):
    with pytest.raises(ollama.ResponseError) as caught:
        client.pull(name)
    assert caught.value.status_code in (400, 403)
    with pytest.raises(ollama.ResponseError) as caught:
        client.create("new", from_=name)
    assert caught.value.status_code in (400, 403)


def test_what_was_named_at_the_start_is_not_deleted(client):
    with pytest.raises(ollama.ResponseError) as caught:
        client.delete("tiny")
    assert caught.value.status_code == 409
