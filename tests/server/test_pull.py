"""Models that come while the server runs, from a hub on the loopback."""

from __future__ import annotations

from collections.abc import Iterator

import ollama
import pytest

from hub_server import HubServer
from insula.server.options import ServeOptions

from .conftest import Running, start, stop


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def empty(tmp_path, hub, monkeypatch) -> Iterator[Running]:
    """A server with nothing in its store."""
    monkeypatch.setenv("INSULA_HOME", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("INSULA_OLLAMA_REGISTRY", hub.endpoint)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.chdir(tmp_path)
    running = start(ServeOptions(load={"n_threads": 1}))
    yield running
    stop(running)


def test_pull_ask_delete(empty, hub, files):
    hub.add("them/tiny", {"tiny-Q4_K_M.gguf": files["tiny"].read_bytes()})
    client = ollama.Client(host=empty.url)
    assert client.list().models == []
    name = "hf.co/them/tiny:Q4_K_M"
    steps = list(client.pull(name, stream=True))
    assert steps[-1].status == "success"
    moved = [step for step in steps if step.total]
    assert all(0 <= step.completed <= step.total == files["tiny"].stat().st_size for step in moved)
    assert [model.model for model in client.list().models] == [name]
    answer = client.chat(
        name, [{"role": "user", "content": "hi"}], options={"num_predict": 3, "seed": 4}
    )
    assert answer.eval_count == 3
    assert answer.load_duration > 0
    client.delete(name)
    assert client.list().models == []
    assert client.ps().models == []


def test_a_name_as_ollamas_users_write_it(empty, hub, files):
    hub.add_to_registry("library/tiny:1b", [("model", files["tiny"].read_bytes())])
    client = ollama.Client(host=empty.url)
    assert client.pull("tiny:1b").status == "success"
    asked = client.generate("tiny:1b", "hi", options={"num_predict": 2, "seed": 4})
    assert asked.model == "ollama.com/library/tiny:1b"
    assert asked.eval_count == 2


def test_a_pull_that_fails_says_so_in_its_own_shape(empty, hub):
    client = ollama.Client(host=empty.url)
    with pytest.raises(ollama.ResponseError) as caught:
        client.pull("hf.co/them/nothing")
    assert caught.value.status_code in (404, 502)
    with pytest.raises(ollama.ResponseError):
        list(client.pull("hf.co/them/nothing", stream=True))


def test_with_no_model_there_is_no_default(empty):
    refused = empty.http.post("/tokenize", json={"prompt": "hi"})
    assert refused.status_code == 404
    assert "name one" in refused.json()["error"]["message"]
    assert empty.http.get("/ready").json() == {"status": "ready", "models": []}
