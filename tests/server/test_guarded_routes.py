"""The real application behind the guards: every route, and what requests leave behind."""

from __future__ import annotations

import json
import re
import time

import pytest
from starlette.middleware import Middleware

from insula.server import errors, routes
from insula.server.guards import Guards
from insula.server.options import ServeOptions
from insula.server.settings import ServerSettings
from insula.store import keys, spending
from insula.store.audit_chain import read_records, verify
from insula.store.database import Database

from .conftest import start, stop


def shape(path, denied):
    told = errors.RefusalError(denied.status, denied.message, code=denied.code)
    return errors.body(routes.family(path), told)


@pytest.fixture(scope="module")
def guarded(files, tmp_path_factory):
    path = tmp_path_factory.mktemp("guarded") / "insula.db"
    guards = Guards.open(
        ServerSettings(), find=routes.find, methods=routes.methods, shape=shape, path=path
    )
    options = ServeOptions(models=(str(files["tiny"]),), load={"n_threads": 2})
    running = start(options, middleware=[Middleware(guards.around)])
    with Database.open(path) as store:
        yield running, store
    stop(running)


@pytest.fixture(scope="module")
def secrets(guarded):
    return {s: keys.create(guarded[1], name=s, now=1, scopes=(s,))[1] for s in keys.SCOPES}


def test_every_route_of_the_table(guarded, secrets):
    """FAULTS row 8: a new route is in this test without anybody's doing."""
    running, _ = guarded
    assert len(routes.ROUTES) > 30
    for route in routes.ROUTES:
        path = re.sub(r"\{[^}]*\}", "x", route.path)
        for scope in (None, "wrong", *keys.SCOPES):
            secret = None if scope is None else secrets.get(scope, keys.PREFIX + "A" * 43)
            headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
            body = b"{" if route.method == "POST" else None
            answer = running.http.request(route.method, path, headers=headers, content=body)
            if route.scope == "open":
                assert answer.status_code == 200
            elif scope in (None, "wrong"):
                assert answer.status_code == 401, route
            elif scope != route.scope:
                assert answer.status_code == 403, route
            else:
                assert answer.status_code not in (401, 403), route
            if answer.status_code in (401, 403) and route.method != "HEAD":
                error = answer.json()["error"]
                assert isinstance(error, str) is (route.family == "ollama")


def test_what_a_chat_leaves_behind(guarded, secrets):
    running, store = guarded
    headers = {"X-Api-Key": secrets["inference"]}
    canary = "canary in the question"
    asked = {"model": "tiny", "messages": [{"role": "user", "content": canary}], "max_tokens": 4}
    for stream in (False, True):
        asked["stream"] = stream
        answer = running.http.post("/v1/chat/completions", json=asked, headers=headers)
        assert answer.status_code == 200, answer.text
    whole = running.http.post(
        "/v1/chat/completions", json=asked | {"stream": False}, headers=headers
    )
    used = whole.json()["usage"]
    records = [r for _, r in read_records(store) if r["event"] == "request" and "model" in r]
    assert len(records) == 3
    for record in records:
        assert (record["model"], record["route"]) == ("tiny", "/v1/chat/completions")
        assert record["prompt_tokens"] == used["prompt_tokens"]
        assert record["completion_tokens"] == used["completion_tokens"]
    key = keys.find(store, secrets["inference"])
    spent = spending.spent(store, key.tenant, now=time.time())
    assert spent.total == 3 * used["total_tokens"]
    assert "canary" not in json.dumps([r for _, r in read_records(store)])
    assert verify(store, store.path.parent).faults == ()


def test_a_stream_that_was_left_is_charged(guarded, secrets):
    running, store = guarded
    headers = {"X-Api-Key": secrets["inference"]}
    asked = {
        "model": "tiny",
        "prompt": "the cat",
        "max_tokens": 400,
        "stream": True,
        "ignore_eos": True,
    }
    before = len(list(read_records(store)))
    with running.http.stream("POST", "/v1/completions", json=asked, headers=headers) as answer:
        next(answer.iter_bytes())
    running.wait("it is recorded", lambda: len(list(read_records(store))) > before)
    *_, (_, record) = read_records(store)
    assert record["outcome"] in ("aborted", "done")
    assert record["completion_tokens"] > 0
