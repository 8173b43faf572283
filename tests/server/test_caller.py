"""What a handler is told about who asks: whose prefixes are shared, and which models there are; and
what it tells of what was used. The layer in front believes what the test says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from starlette.middleware import Middleware

from insula.server import caller, usage
from insula.server.caller import Caller
from insula.server.options import ServeOptions
from insula.server.usage import Usage

from .conftest import Running, start, stop

ASK: Any = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "the cat sat on the mat and ran and ran in the sun"}],
    "max_tokens": 3,
    "temperature": 0,
}


class Named:
    """Takes the tenant, and the models it may use, from headers; keeps what was used."""

    seen: ClassVar[list[Usage]] = []

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            headers = dict(scope["headers"])
            models = headers.get(b"x-models")
            scope[caller.SCOPE_KEY] = Caller(
                tenant=headers.get(b"x-tenant", b"").decode(),
                models=None if models is None else frozenset(models.decode().split(",")),
            )
            scope[usage.SCOPE_KEY] = Usage()
            self.seen.append(scope[usage.SCOPE_KEY])
        await self.app(scope, receive, send)


@pytest.fixture(scope="module")
def guarded(files, home) -> Iterator[Running]:
    options = ServeOptions(models=(str(files["tiny"]), str(files["encoder"])), only=True)
    running = start(options, middleware=[Middleware(Named)])
    yield running
    stop(running)


def ask(guarded: Running, **headers: str) -> Any:
    names = {f"x-{name}": value for name, value in headers.items()}
    return guarded.http.post("/v1/chat/completions", json=ASK, headers=names)


def test_a_tenants_prefixes_are_its_own(guarded):
    """FAULTS 19: no hit across tenants."""

    def cached(tenant: str) -> int:
        return ask(guarded, tenant=tenant).json()["usage"]["prompt_tokens_details"]["cached_tokens"]

    assert cached("a") == 0
    assert cached("a") > 0
    assert cached("b") == 0
    assert cached("") == 0


def test_models_that_a_caller_may_not_use_are_not_there(guarded):
    assert ask(guarded, models="tiny").status_code == 200
    refused = ask(guarded, models="encoder")
    unknown = guarded.http.post("/v1/chat/completions", json={**ASK, "model": "nobody"})
    assert refused.status_code == unknown.status_code == 404
    only = {"x-models": "encoder"}
    listed = guarded.http.get("/v1/models", headers=only).json()["data"]
    assert [model["id"] for model in listed] == ["encoder"]
    assert guarded.http.get("/v1/models/tiny", headers=only).status_code == 404
    tags = guarded.http.get("/api/tags", headers=only).json()["models"]
    assert [model["name"] for model in tags] == ["encoder"]
    assert not [
        m for m in guarded.http.get("/api/ps", headers=only).json()["models"] if m["name"] == "tiny"
    ]
    for path, body in (
        ("/api/show", {"model": "tiny"}),
        ("/api/chat", {"model": "tiny", "messages": []}),
        ("/tokenize", {"model": "tiny", "prompt": "hi"}),
        ("/tokenize", {"prompt": "hi"}),
    ):
        assert guarded.http.post(path, json=body, headers=only).status_code == 404, path


def test_what_was_used_is_told(guarded):
    answer = ask(guarded).json()["usage"]
    used = Named.seen[-1]
    assert used.model == "tiny"
    assert used.prompt_tokens == answer["prompt_tokens"]
    assert used.completion_tokens == 3
    with guarded.http.stream("POST", "/v1/chat/completions", json={**ASK, "stream": True}) as said:
        said.read()
    assert Named.seen[-1].completion_tokens == 3
    guarded.http.post("/v1/embeddings", json={"model": "encoder", "input": "the cat"})
    assert (Named.seen[-1].model, Named.seen[-1].completion_tokens) == ("encoder", 0)
    assert Named.seen[-1].prompt_tokens > 0
