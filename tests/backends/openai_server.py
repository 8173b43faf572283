"""A server on the loopback that speaks OpenAI's routes, over the tests' own tiny model.

Faults are queued and used up in order, one per POST: a callable that gets the handler and the
request's JSON and returns True if it dealt with the request.

    with OpenAIServer(llm) as server:
        server.faults.append(answer(429, {"error": {"message": "slow down"}}))
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from insula import LLM
from insula.types import TokenLogprob

Fault = Callable[["Handler", dict[str, Any]], bool]
OPTIONS = (
    *("temperature", "top_p", "presence_penalty", "frequency_penalty", "seed", "max_tokens"),
    *("stop", "top_k", "min_p", "typical_p", "repeat_penalty", "repeat_last_n", "ignore_eos"),
)


class OpenAIServer:
    """GET /v1/models, POST /v1/completions and /v1/chat/completions, streamed."""

    def __init__(
        self, llm: LLM, *, key: str | None = None, models: list[Any] | None = None
    ) -> None:
        self.llm, self.key = llm, key
        self.models = [{"id": "tiny", "max_model_len": llm.n_ctx}] if models is None else models
        self.faults: list[Fault] = []
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.stopped = threading.Event()  # a client left in the middle of an answer
        self.release = threading.Event()  # what a fault that hangs waits for
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._http.owner = self  # type: ignore[attr-defined]

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    @property
    def model(self) -> str:
        return f"remote:{self.base}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release.set()
        self._http.shutdown()
        self._http.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def owner(self) -> OpenAIServer:
        return self.server.owner  # type: ignore[attr-defined]

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if not self.allowed():
            return
        if self.path != "/v1/models":
            self.json(404, {"error": {"message": f"no route {self.path}"}})
            return
        self.json(200, {"object": "list", "data": self.owner.models})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.allowed():
            return
        self.owner.bodies.append(body)
        if self.owner.faults and self.owner.faults.pop(0)(self, body):
            return
        chat = self.path == "/v1/chat/completions"
        options = {name: body[name] for name in OPTIONS if name in body}
        score = body.get("top_logprobs" if chat else "logprobs")
        if score is not None:
            options["logprobs"] = score
        options["logit_bias"] = {int(i): b for i, b in body.get("logit_bias", {}).items()}
        llm = self.owner.llm
        stream = (
            llm.chat_stream(body["messages"], **options)
            if chat
            else llm.stream(body["prompt"], **options)
        )
        self.begin()
        with stream:
            for chunk in stream:
                if not self.event(event(chat, chunk)):
                    self.owner.stopped.set()
                    return
                if chunk.completion is not None:
                    report = chunk.completion.report
                    usage = {
                        "prompt_tokens": report.prompt_tokens,
                        "completion_tokens": report.completion_tokens,
                        "prompt_tokens_details": {"cached_tokens": report.cached_tokens},
                    }
                    self.event({"choices": [], "usage": usage})
        self.end()

    def allowed(self) -> bool:
        self.owner.keys.append(self.headers.get("Authorization"))
        if (
            self.owner.key is None
            or self.headers.get("Authorization") == f"Bearer {self.owner.key}"
        ):
            return True
        given = self.headers.get("Authorization", "none")
        self.json(401, {"error": {"message": f"wrong key: {given}"}})
        return False

    def json(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def begin(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        self.wfile.write(b": hello\r\n\r\n")

    def event(self, body: Any) -> bool:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            self.wfile.write(b"data: " + data + b"\n\n")
        except OSError:
            return False
        return True

    def end(self) -> None:
        self.event(b"[DONE]")


def event(chat: bool, chunk: Any) -> dict[str, Any]:
    """One chunk of ours in OpenAI's shape."""
    choice: dict[str, Any] = {"index": 0, "finish_reason": chunk.finish_reason}
    if chat:
        choice["delta"] = {"content": chunk.text}
        if chunk.reasoning:
            choice["delta"]["reasoning_content"] = chunk.reasoning
        if chunk.logprobs is not None:
            choice["logprobs"] = {"content": [scored(entry) for entry in chunk.logprobs]}
    else:
        choice["text"] = chunk.text
        if chunk.logprobs is not None:
            choice["logprobs"] = {
                "tokens": [shown(entry.token) for entry in chunk.logprobs],
                "token_logprobs": [entry.logprob for entry in chunk.logprobs],
                "top_logprobs": [
                    {shown(token): score for _, token, score in entry.top}
                    for entry in chunk.logprobs
                ],
            }
    return {"object": "chunk", "choices": [choice]}


def scored(entry: TokenLogprob) -> dict[str, Any]:
    return {
        "token": shown(entry.token),
        "bytes": list(entry.token),
        "logprob": entry.logprob,
        "top_logprobs": [
            {"token": shown(token), "bytes": list(token), "logprob": score}
            for _, token, score in entry.top
        ],
    }


def shown(token: bytes) -> str:
    return token.decode(errors="replace")


def answer(status: int, body: Any, headers: dict[str, str] | None = None) -> Fault:
    """The next POST gets this."""

    def fault(handler: Handler, _: dict[str, Any]) -> bool:
        handler.json(status, body, headers)
        return True

    return fault


def say(*events: Any, end: bool = True) -> Fault:
    """The next POST gets these events."""

    def fault(handler: Handler, _: dict[str, Any]) -> bool:
        handler.begin()
        for item in events:
            handler.event(item)
        if end:
            handler.end()
        return True

    return fault


def hang(*events: Any, headers: bool = True) -> Fault:
    """The next POST gets these events, and then silence until the server closes."""

    def fault(handler: Handler, _: dict[str, Any]) -> bool:
        if headers:
            handler.begin()
        for item in events:
            handler.event(item)
        handler.owner.release.wait(60)
        handler.close_connection = True
        return True

    return fault


def drip(text: str) -> Fault:
    """The next POST gets this text again and again until the client leaves."""

    def fault(handler: Handler, _: dict[str, Any]) -> bool:
        handler.begin()
        piece = {"choices": [{"index": 0, "text": text, "finish_reason": None}]}
        while handler.event(piece) and not handler.owner.release.is_set():
            time.sleep(0.005)
        handler.owner.stopped.set()
        return True

    return fault
