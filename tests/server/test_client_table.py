"""The table of docs/server.md: each client's calls, and what comes of them.

Made from what happens here. To write it anew, with INSULA_WRITE_DOCS=1 in the environment:

    pytest tests/server/test_client_table.py
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anthropic
import ollama
import openai
import pytest

DOC = Path(__file__).resolve().parents[2] / "docs" / "server.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
MESSAGES: Any = [{"role": "user", "content": "hi"}]

SCHEMA: Any = {
    "type": "object",
    "properties": {"place": {"enum": ["here", "there"]}},
    "required": ["place"],
    "additionalProperties": False,
}
ANSWER: Any = {"type": "json_schema", "json_schema": {"name": "where", "schema": SCHEMA}}
TOOL: Any = {"type": "function", "function": {"name": "look", "parameters": SCHEMA}}

Call = Callable[[Any], object]


def of_openai(client: openai.OpenAI) -> dict[str, tuple[str, Call]]:
    chat: Any = {"model": "tiny", "messages": MESSAGES, "max_tokens": 2}
    text: Any = {"model": "tiny", "prompt": "hi", "max_tokens": 2}
    return {
        "models.list": ("GET /v1/models", lambda c: c.models.list()),
        "models.retrieve": ("GET /v1/models/{id}", lambda c: c.models.retrieve("tiny")),
        "chat.completions.create": (
            "POST /v1/chat/completions",
            lambda c: c.chat.completions.create(**chat),
        ),
        "…, stream=True": (
            "",
            lambda c: list(c.chat.completions.create(**chat, stream=True)),
        ),
        "…, n, logprobs, seed, stop, logit_bias": (
            "",
            lambda c: c.chat.completions.create(
                **chat, n=2, logprobs=True, top_logprobs=2, seed=1, stop=["x"], logit_bias={"5": 1}
            ),
        ),
        "…, response_format json_schema": (
            "",
            lambda c: c.chat.completions.create(
                **{**chat, "max_tokens": 60}, response_format=ANSWER
            ),
        ),
        "…, tools, tool_choice=required": (
            "",
            lambda c: c.chat.completions.create(
                **{**chat, "model": "endless"}, tools=[TOOL], tool_choice="required"
            ),
        ),
        "…, prediction": (
            "",
            lambda c: c.chat.completions.create(
                **chat, prediction={"type": "content", "content": "x"}
            ),
        ),
        "completions.create": ("POST /v1/completions", lambda c: c.completions.create(**text)),
        "…, echo, logprobs, ids": (
            "",
            lambda c: c.completions.create(
                model="tiny", prompt=[[5, 6]], max_tokens=1, echo=True, logprobs=1
            ),
        ),
        "…, suffix": ("", lambda c: c.completions.create(**text, suffix="x")),
        "embeddings.create": (
            "POST /v1/embeddings",
            lambda c: c.embeddings.create(model="encoder", input=["the cat"]),
        ),
        "responses.create": (
            "POST /v1/responses",
            lambda c: c.responses.create(model="tiny", input="hi"),
        ),
        "moderations.create": ("POST /v1/moderations", lambda c: c.moderations.create(input="hi")),
        "files.list": ("GET /v1/files", lambda c: c.files.list()),
        "batches.list": ("GET /v1/batches", lambda c: c.batches.list()),
    }


def of_ollama(client: ollama.Client) -> dict[str, tuple[str, Call]]:
    few = {"num_predict": 2}
    return {
        "list": ("GET /api/tags", lambda c: c.list()),
        "ps": ("GET /api/ps", lambda c: c.ps()),
        "show": ("POST /api/show", lambda c: c.show("tiny")),
        "chat": ("POST /api/chat", lambda c: c.chat("tiny", MESSAGES, options=few)),
        "…, stream=True": (
            "",
            lambda c: list(c.chat("tiny", MESSAGES, options=few, stream=True)),
        ),
        "…, format": (
            "",
            lambda c: c.chat("tiny", MESSAGES, options={"num_predict": 60}, format=SCHEMA),
        ),
        "…, tools": (
            "",
            lambda c: c.chat("endless", MESSAGES, options=few, tools=[TOOL]),
        ),
        "…, images": (
            "",
            lambda c: c.chat("tiny", [{**MESSAGES[0], "images": ["aGk="]}], options=few),
        ),
        "generate": ("POST /api/generate", lambda c: c.generate("tiny", "hi", options=few)),
        "…, suffix": ("", lambda c: c.generate("tiny", "hi", suffix="x", options=few)),
        "embed": ("POST /api/embed", lambda c: c.embed("encoder", "the cat")),
        "embeddings": ("POST /api/embeddings", lambda c: c.embeddings("encoder", "the cat")),
        "create": (
            "POST /api/create",
            lambda c: (c.create("new", from_="tiny"), c.delete("new")),
        ),
        "push": ("POST /api/push", lambda c: c.push("tiny")),
    }


def of_anthropic(client: anthropic.Anthropic) -> dict[str, tuple[str, Call]]:
    ask: Any = {"model": "tiny", "messages": MESSAGES, "max_tokens": 2}
    return {
        "messages.create": ("POST /v1/messages", lambda c: c.messages.create(**ask)),
        "…, stream=True": ("", lambda c: list(c.messages.create(**ask, stream=True))),
        "…, tools, tool_choice=any": (
            "",
            lambda c: c.messages.create(
                **{**ask, "model": "endless"},
                tools=[{"name": "look", "input_schema": SCHEMA}],
                tool_choice={"type": "any"},
            ),
        ),
        "messages.count_tokens": (
            "POST /v1/messages/count_tokens",
            lambda c: c.messages.count_tokens(model="tiny", messages=MESSAGES),
        ),
    }


def outcome(call: Call, client: Any) -> str:
    """passes, refuses (with what), or absent."""
    try:
        call(client)
    except (openai.APIStatusError, anthropic.APIStatusError, ollama.ResponseError) as error:
        said = str(getattr(error, "body", None) or error)
        message = getattr(error, "error", None) or said
        if isinstance(getattr(error, "body", None), dict):
            body: Any = error.body
            message = body.get("message") or body.get("error", {}).get("message", "")
        if error.status_code == 404 and "nothing at this path" in str(message):
            return "absent (404)"
        if error.status_code == 405:
            return "absent (405)"
        return f"refuses ({error.status_code}): {message}"
    return "passes"


@pytest.fixture
def table(served) -> str:
    clients: list[tuple[str, str, Any, Any]] = [
        (
            "openai",
            openai.__version__,
            openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0),
            of_openai,
        ),
        ("ollama", ollama_version(), ollama.Client(host=served.url), of_ollama),
        (
            "anthropic",
            anthropic.__version__,
            anthropic.Anthropic(base_url=served.url, api_key="none", max_retries=0),
            of_anthropic,
        ),
    ]
    lines = ["| client | call | route | |", "|---|---|---|---|"]
    for name, version, client, calls in clients:
        for called, (route, call) in calls(client).items():
            shown = f"`{route}`" if route else ""
            lines.append(f"| {name} {version} | `{called}` | {shown} | {outcome(call, client)} |")
    return "\n".join(lines)


def ollama_version() -> str:
    from importlib.metadata import version

    return version("ollama")


def test_the_table_of_the_documentation_is_what_happens(table):
    text = DOC.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    written, _, tail = rest.partition(END)
    if os.environ.get("INSULA_WRITE_DOCS"):
        DOC.write_text(f"{head}{BEGIN}\n{table}\n{END}{tail}", encoding="utf-8")
        return

    def rows(lines: str) -> list[list[str]]:  # whatever version of a client is installed
        cells = [line.split("|")[1:-1] for line in lines.strip().splitlines()[2:]]
        return [[cell[0].split()[0], *cell[1:]] for cell in cells]

    assert rows(table) == rows(written)
