"""What clients do wrong or badly, and what must happen: nothing is left behind, nobody else waits.

After every test the server is idle: no admission, no lease, no sequence, no page in use.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import urlsplit

import pytest

from insula.server.options import Limits, ServeOptions

from .conftest import Running, start, stop

MESSAGES = [{"role": "user", "content": "the cat sat on the mat"}]
CHAT = "/v1/chat/completions"
POST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture(autouse=True)
def nothing_is_left(request) -> Iterator[None]:
    yield
    if "served" in request.fixturenames:
        served = request.getfixturevalue("served")
        served.wait("everything is let go of", served.idle)
        assert served.http.get("/health").json() == {"status": "ok"}


def connected(served: Running) -> socket.socket:
    parts = urlsplit(served.url)
    return socket.create_connection((parts.hostname, parts.port), timeout=30)


def head(body: bytes, path: str = CHAT, length: str | None = None) -> bytes:
    size = str(len(body)) if length is None else length
    return (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {size}\r\n\r\n"
    ).encode() + body


def answer(connection: socket.socket) -> bytes:
    data = b""
    with suppress(ConnectionError):
        while piece := connection.recv(65536):
            data += piece
            if b"\r\n\r\n" in data and b"transfer-encoding: chunked" not in data.lower():
                before, _, after = data.partition(b"\r\n\r\n")
                lengths = [
                    h for h in before.lower().split(b"\r\n") if h.startswith(b"content-length")
                ]
                if lengths and len(after) >= int(lengths[0].split(b":")[1]):
                    break
    return data


@pytest.mark.parametrize(
    "written",
    [
        '"n": 1000000000',
        '"n": 0',
        '"n": 9223372036854775808',
        '"temperature": NaN',
        '"temperature": Infinity',
        '"temperature": 1e400',
        '"top_k": -9223372036854775808',
        '"max_tokens": 9223372036854775807',
        '"max_tokens": -1',
        '"seed": 18446744073709551616',
        '"seed": ' + "9" * 5000,
        '"top_p": 1e308',
        '"presence_penalty": 1e300',
        '"stop": [' + ", ".join(['"a"'] * 100_000) + "]",
        '"stop": ["' + "a" * 100_000 + '"]',
        '"logit_bias": {' + ", ".join(f'"{i}": 1' for i in range(2000)) + "}",
        '"top_logprobs": 1000000, "logprobs": true',
        '"x": ' + "[" * 100_000 + "]" * 100_000,
        '"x": ' + "[" * 100_000,
    ],
)
def test_extreme_numbers_are_refused_before_the_queue(served, written):
    """FAULTS 11."""
    body = f'{{"model": "tiny", "messages": [{{"role": "user", "content": "hi"}}], {written}}}'
    refused = served.http.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert refused.status_code == 400
    assert refused.json()["error"]["type"] == "invalid_request_error"
    assert len(refused.text) < 1000


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"{", b"\xff\xfe", b'{"model": "tiny"'])
def test_what_is_no_object_is_no_request(served, body):
    for path in (CHAT, "/api/chat", "/v1/messages"):
        assert served.http.post(path, content=body).status_code == 400


def test_a_body_that_is_too_large(served):
    """FAULTS 13: said by its length before a byte is read, or noticed while it comes."""
    with connected(served) as connection:
        connection.sendall(head(b"", length=str(11 << 20)))
        assert b" 413 " in answer(connection).split(b"\r\n")[0]

    def pieces() -> Iterator[bytes]:
        for _ in range(11):
            yield b" " * (1 << 20)

    with suppress(Exception):  # the server may close before the client has sent all
        assert served.http.post(CHAT, content=pieces()).status_code == 413


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"a" * (10 << 20) + b"\r\n\r\n",
        head(b"{}", length="-1"),
        head(b"{}", length="1e9"),
        POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
    ids=["head", "negative", "no number", "double", "both", "nonsense"],
)
def test_http_that_is_wrong(served, sent):
    """FAULTS 13."""
    with connected(served) as connection:
        with suppress(ConnectionError):
            connection.sendall(sent)
        status = answer(connection).split(b"\r\n")[0]
    assert status == b"" or any(code in status for code in (b" 400 ", b" 413 ", b" 431 "))
    if b"Content-Length" in sent:
        assert status


def streaming(**more: object) -> bytes:
    return json.dumps(
        {"model": "endless", "messages": MESSAGES, "stream": True, "ignore_eos": True, **more}
    ).encode()


def test_clients_that_leave_free_their_sequences(served):
    """FAULTS 16: while queued, in prefill and in decode; with a stream and without."""
    prompt = "the cat sat on the mat " * 2000
    kinds = [
        streaming(),
        streaming(stream=False),
        streaming(n=4),
        streaming(messages=[{"role": "user", "content": prompt}]),
        json.dumps({"model": "endless", "messages": MESSAGES}).encode(),
    ]
    for at in range(50):
        path = "/api/chat" if at % 5 == 4 else CHAT
        connection = connected(served)
        connection.sendall(head(kinds[at % 5], path))
        if at % 2:  # into the decode
            connection.settimeout(0.05)
            with suppress(TimeoutError):
                connection.recv(200)
        connection.close()
    served.wait("the sequences are freed", served.idle)


def test_many_who_leave_while_they_wait(served):
    connections = [connected(served) for _ in range(40)]
    for connection in connections:
        connection.sendall(head(streaming()))
    inside = served.server.admission
    served.wait("all are here", lambda: inside.inside == 40)
    for connection in connections:
        connection.close()
    served.wait("all are gone", served.idle)


@pytest.fixture
def small(files, monkeypatch, home) -> Iterator[Running]:
    """A server with little room and short patience."""
    monkeypatch.setenv("INSULA_HOME", str(home))
    limits = Limits(stall=0.3, head_time=0.3, body_time=0.3, buffered=64 << 10)
    options = ServeOptions(
        models=(str(files["endless"]),),
        max_running=2,
        max_waiting=2,
        load={"n_threads": 1},
        limits=limits,
        grace=1.0,
    )
    running = start(options)
    running.wait("it is loaded", lambda: "endless" in running.server.models.loaded)
    yield running
    stop(running)


def test_too_many_are_sent_away_at_once_and_the_rest_end(small):
    """FAULTS 17."""
    began = [connected(small) for _ in range(4)]
    for connection in began:
        connection.sendall(head(streaming(max_tokens=3000)))
    small.wait("they are in", lambda: small.server.admission.inside == 4)
    for path, body in (
        (CHAT, {"model": "endless", "messages": MESSAGES}),
        ("/api/chat", {"model": "endless", "messages": MESSAGES}),
        ("/v1/messages", {"model": "endless", "messages": MESSAGES, "max_tokens": 4}),
    ):
        refused = small.http.post(path, json=body)
        assert refused.status_code == 503
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert "come back" in refused.text
    assert small.server.admission.inside <= 4
    for connection in began:
        data = b""
        while b"[DONE]" not in data:
            piece = connection.recv(65536)
            assert piece, data[-300:]
            data += piece
        connection.close()
    small.wait("they are through", small.idle)
    assert small.http.get("/metrics").text.count('insula_refused_total{reason="full"} 3.0') == 1


def test_a_reader_that_sleeps_is_given_up(small):
    """FAULTS 15: what it does not read is bounded, and its sequence is freed."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    parts = urlsplit(small.url)
    connection.connect((parts.hostname, parts.port))
    connection.sendall(head(streaming(logprobs=True, top_logprobs=20)))
    small.wait("it began", lambda: small.server.admission.inside == 1)
    small.wait("it is given up", lambda: small.server.admission.inside == 0)
    small.wait("nothing is left", small.idle)
    connection.close()


def test_senders_that_dawdle_are_cut_off(small):
    """FAULTS 14: over the headers, and over the body."""
    with connected(small) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost")
        assert b" 408 " in answer(connection).split(b"\r\n")[0]
    with connected(small) as connection:
        connection.sendall(head(b'{"model":', length="100"))
        assert b" 408 " in answer(connection).split(b"\r\n")[0]


def test_stopping_ends_every_stream_with_a_word(files, monkeypatch, home):
    """FAULTS 20: not ready at once; what runs past the grace is told; nobody new gets in."""
    monkeypatch.setenv("INSULA_HOME", str(home))
    options = ServeOptions(
        models=(str(files["endless"]),), load={"n_threads": 1}, grace=0.5, max_running=4
    )
    running = start(options)
    with running.http as idle:
        idle.get("/health")
        streams = [connected(running) for _ in range(6)]
        for connection in streams:
            connection.sendall(head(streaming()))
        running.wait("they run", lambda: running.server.admission.inside == 6)
        told = connected(running)  # a request that comes while the server stops
        told.sendall(head(streaming())[:-20])
        time.sleep(0.2)
        running.serving.stop()
        told.sendall(head(streaming())[-20:])
        refused = answer(told)
        assert b" 503 " in refused.split(b"\r\n")[0]
        assert b"the server is stopping" in refused
    for connection in streams:
        data = answer(connection)
        assert b"the server is stopping" in data
        if not data.startswith(b"HTTP/1.1 503"):  # as it does for those that were still queued
            assert data.endswith(b"0\r\n\r\n")  # a whole response
        connection.close()
    running.thread.join(30)
    assert not running.thread.is_alive()


def test_others_are_answered_meanwhile(served):
    """/health while many streams run."""
    connections = [connected(served) for _ in range(16)]
    for connection in connections:
        connection.sendall(head(streaming()))
    served.wait("they run", lambda: served.server.admission.inside == 16)
    answers: list[int] = []

    def ask() -> None:
        with served.http as http:
            answers.extend(http.get("/health").status_code for _ in range(20))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == [200] * 80
    for connection in connections:
        connection.close()


@pytest.mark.parametrize("path", ["/v1/nothing", "/api/nothing", "/nothing", "/v1/messages/x"])
def test_what_is_not_there(served, path):
    refused = served.http.get(path)
    assert refused.status_code == 404
    assert "error" in refused.json()


def test_the_wrong_method(served):
    refused = served.http.get(CHAT)
    assert refused.status_code == 405
    assert refused.headers["allow"] == "POST"


@pytest.mark.parametrize("path", [CHAT, "/api/chat", "/v1/messages", "/v1/completions"])
@pytest.mark.parametrize(
    "name", ["\ud800", "a\0b", "../tiny", "/etc/passwd", "x" * 500, "a b", "%"]
)
def test_names_that_are_none(served, path, name):
    """FAULTS 26: no path, and no failure of ours either."""
    asked = {"prompt": "a"} if path == "/v1/completions" else {"messages": MESSAGES}
    if path == "/v1/messages":
        asked["max_tokens"] = 1
    refused = served.http.post(path, content=json.dumps({**asked, "model": name}).encode())
    assert refused.status_code in (400, 404), refused.text
    assert "/etc" not in refused.text.replace(name, "")


@pytest.mark.parametrize(
    ("path", "more"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "a\ud800b"}]}),
        (CHAT, {"messages": [{"role": "\ud800", "content": "a"}]}),
        (CHAT, {"messages": [{"role": "user", "content": 5}]}),
        (CHAT, {"messages": [{"role": 5, "content": "a"}]}),
        (CHAT, {"messages": [{}]}),
        (CHAT, {"messages": MESSAGES, "chat_template_kwargs": {"messages": []}}),
        (CHAT, {"messages": MESSAGES, "\ud800": 1}),
        ("/v1/completions", {"prompt": "a\ud800"}),
        ("/v1/completions", {"prompt": []}),
        ("/v1/completions", {"prompt": [[]]}),
        ("/v1/completions", {"prompt": [[320]]}),
        ("/v1/completions", {"prompt": [[320]], "echo": True}),
        ("/v1/completions", {"prompt": ""}),
        ("/v1/completions", {"prompt": ["a"] * 129}),
        ("/v1/embeddings", {"input": "a\ud800"}),
        ("/v1/embeddings", {"input": ""}),
        ("/v1/embeddings", {"input": []}),
        ("/tokenize", {"prompt": "a\ud800"}),
        ("/detokenize", {"tokens": [320]}),
        ("/detokenize", {"tokens": [2**31]}),
        ("/v1/rerank", {"query": "", "documents": ["a"]}),
        ("/v1/rerank", {"query": "a", "documents": [{"image": "x"}]}),
        ("/api/generate", {"prompt": "a\ud800"}),
        ("/api/embed", {"input": "a\ud800"}),
        ("/api/chat", {"messages": [{"content": "x"}]}),
        ("/v1/messages", {"messages": [{"role": "user", "content": 5}], "max_tokens": 2}),
    ],
)
def test_what_makes_no_sense_is_a_400_and_nothing_else(served, path, more):
    encodes = "embed" in path
    model = "encoder" if encodes else "ranker" if "rerank" in path else "tiny"
    refused = served.http.post(path, content=json.dumps({"model": model, **more}).encode())
    assert refused.status_code == 400, refused.text
    assert "Traceback" not in refused.text
