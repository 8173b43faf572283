"""The table is the whole truth about the routes, and what they say of themselves."""

from __future__ import annotations

import inspect

from fastapi.routing import APIRoute

from insula.server import routes
from insula.server.app import create_app
from insula.server.options import ServeOptions


def test_the_application_has_the_tables_routes_and_no_other(files):
    app = create_app(ServeOptions(models=(str(files["tiny"]),)))
    served = {
        (method, route.path)
        for route in app.routes
        if isinstance(route, APIRoute)
        for method in route.methods
    }
    assert served == {(route.method, route.path) for route in routes.ROUTES}
    assert len(app.routes) == len(routes.ROUTES)  # nothing beside them


def test_only_health_is_open():
    assert {route.path for route in routes.ROUTES if route.scope == "open"} == {"/health"}


def test_find_sees_what_the_router_sees():
    assert routes.find("POST", "/v1/chat/completions").scope == "inference"
    assert routes.find("GET", "/v1/models/hf.co/a/b:Q4").handler == "openai.models:model"
    assert routes.find("DELETE", "/api/delete").scope == "models"
    assert routes.find("GET", "/metrics").scope == "admin"
    assert routes.find("GET", "/v1/chat/completions") is None
    assert routes.find("POST", "/v1/chat/completions/") is None
    assert routes.find("POST", "/api/blobs/a/b") is None


def test_the_published_description(served):
    document = served.http.get("/openapi.json").json()
    described = {
        (method.upper(), path) for path, item in document["paths"].items() for method in item
    }
    expected = {(r.method, r.path.replace(":path}", "}")) for r in routes.ROUTES}
    assert described == expected
    chat = document["paths"]["/v1/chat/completions"]["post"]
    schema = chat["requestBody"]["content"]["application/json"]["schema"]
    assert set(schema["required"]) == {"model", "messages"}
    assert "top_logprobs" in schema["properties"]
    assert chat["x-insula-scope"] == "inference"


def test_every_handler_says_what_it_does(files):
    app = create_app(ServeOptions(models=(str(files["tiny"]),)))
    for route in app.routes:
        assert inspect.cleandoc(route.summary)


def test_metrics_count_what_happened(served):
    ask = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 3,
        "temperature": 0,
    }

    def completions() -> float:
        for line in served.http.get("/metrics").text.splitlines():
            if line.startswith('insula_tokens_total{kind="completion",model="tiny"}'):
                return float(line.split()[-1])
        return 0.0

    before = completions()
    assert served.http.post("/v1/chat/completions", json=ask).status_code == 200
    assert completions() == before + 3
    text = served.http.get("/metrics").text
    for name in (
        "insula_queue_seconds_bucket",
        "insula_time_to_first_token_seconds_count",
        "insula_inter_token_seconds_sum",
        'insula_sequences{model="tiny",state="running"}',
        'insula_kv_pages{model="tiny",state="all"}',
        "insula_requests_here 0.0",
        "process_resident_memory_bytes",
    ):
        assert name in text, name


def test_it_is_ready_when_what_was_named_is_loaded(served, files):
    served.wait("it is ready", lambda: served.http.get("/ready").status_code == 200)
    assert set(served.http.get("/ready").json()["models"]) <= set(files)
