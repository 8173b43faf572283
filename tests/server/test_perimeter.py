"""Requests that no server should believe, over raw sockets: FAULTS rows 10, 13 and 14."""

from __future__ import annotations

import json
import socket
import time

import pytest

from insula.server.perimeter import Bounds, Hosts, is_loopback
from server.guarded_app import Answer, read_all, serve


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("home")) as served:
        yield served


def nothing_reached(served, before):
    return len(served.seen) == before


class TestSites:
    @pytest.mark.parametrize(
        "host",
        [
            "evil.example",
            "evil.example:8000",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "192.168.1.5",
            "127.0.0.1@evil.example",
            "user@127.0.0.1",
            "",
            "[::1",
            "127.0.0.1:99999",
        ],
    )
    def test_a_name_that_was_made_to_point_here(self, served, host):
        before = len(served.seen)
        answer = served.request("GET", "/health", headers={"Host": host})
        assert answer.status == 403
        assert answer.error["code"] == "host_not_allowed"
        assert nothing_reached(served, before)

    @pytest.mark.parametrize(
        "host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.1.2.3", "[::1]:80"]
    )
    def test_this_machines_own_names(self, served, host):
        assert served.request("GET", "/health", headers={"Host": host}).status == 200

    @pytest.mark.parametrize(
        "headers",
        [
            {"Origin": "https://evil.example"},
            {"Origin": "null"},
            {"Origin": "http://127.0.0.1:1"},
            {"Origin": "https://127.0.0.1"},
            {"Origin": "file://"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
            {"Content-Type": "text/plain"},
            {"Content-Type": "Text/Plain; charset=utf-8"},
        ],
    )
    def test_another_sites_page(self, served, headers):
        before = len(served.seen)
        answer = served.request("POST", "/v1/chat/completions", body=b"{}", headers=headers)
        assert answer.status == 403
        assert not any(name.startswith("access-control") for name in answer.headers)
        assert nothing_reached(served, before)

    def test_a_preflight_gets_no_leave(self, served):
        before = len(served.seen)
        headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
        answer = served.request("OPTIONS", "/v1/chat/completions", headers=headers)
        assert answer.status == 403
        assert not any(name.startswith("access-control") for name in answer.headers)
        assert nothing_reached(served, before)

    def test_our_own_page_and_programs_are_served(self, served):
        own = {"Origin": f"http://127.0.0.1:{served.port}", "Sec-Fetch-Site": "same-origin"}
        form = {"Content-Type": "application/x-www-form-urlencoded"}  # what curl -d says
        for headers in ({}, own, form):
            answer = served.request("POST", "/v1/chat/completions", body=b"{}", headers=headers)
            assert answer.status == 200, headers
        followed = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
        assert served.request("GET", "/health", headers=followed).status == 200

    def test_configured_names_and_sites(self, tmp_path):
        hosts = Hosts("127.0.0.1", ["llm.office.example"])
        with serve(tmp_path, hosts=hosts, origins=["https://chat.office.example"]) as served:
            host = {"Host": "llm.office.example"}
            assert served.request("GET", "/health", headers=host).status == 200
            origin = {**host, "Origin": "https://chat.office.example"}
            assert served.request("GET", "/health", headers=origin).status == 200
            origin = {**host, "Origin": "https://chat.office.example.evil.example"}
            assert served.request("GET", "/health", headers=origin).status == 403

    def test_on_a_network_digits_are_served_and_names_are_not(self):
        hosts = Hosts("0.0.0.0")
        assert hosts.serves("192.168.1.5:8000")
        assert hosts.serves("[2001:db8::1]:8000")
        assert hosts.serves(socket.gethostname())
        assert not hosts.serves("evil.example")

    @pytest.mark.parametrize(
        ("host", "expected"),
        [
            *[("127.0.0.1", True), ("localhost", True), ("::1", True), ("[::1]", True)],
            *[("0.0.0.0", False), ("::", False), ("192.168.1.5", False), ("office", False)],
        ],
    )
    def test_loopback(self, host, expected):
        assert is_loopback(host) is expected


HOST = b"Host: 127.0.0.1\r\n"


class TestHttp:
    @pytest.mark.parametrize(
        ("head", "status"),
        [
            (b"POST /v1/stream HTTP/1.1\r\n" + HOST + b"Content-Length: -5\r\n\r\n", 400),
            (
                b"POST /v1/stream HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n"
                b"Content-Length: 6\r\n\r\nhello!",
                400,
            ),
            (b"POST /v1/stream HTTP/1.1\r\n" + HOST + b"Content-Length: 1e3\r\n\r\n", 400),
            (
                b"POST /v1/stream HTTP/1.1\r\n"
                + HOST
                + b"Content-Length: "
                + b"9" * 400
                + b"\r\n\r\n",
                400,
            ),
            (
                b"POST /v1/stream HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                400,
            ),
            (b"POST /v1/stream HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip\r\n\r\n", 501),
            (b"POST /v1/stream HTTP/1.1\r\n" + HOST + HOST + b"\r\n", 400),
            (b"GET /health HTTP/1.1\r\n\r\n", 400),
            (b"GET /health HTTP/1.0\r\n\r\n", 403),
            (b"GET /health HTTP/1.1\r\nHost : 127.0.0.1\r\n\r\n", 400),
            (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
            (b"GET /health HTTP/1.1\r\n" + HOST + b"X: a\x00b\r\n\r\n", 400),
            (b"GET /health HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 20_000 + b"\r\n\r\n", 431),
            (b"GET /health HTTP/1.1\r\n" + HOST + b"X: y\r\n" * 5000 + b"\r\n", 431),
            (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 431),
            (b"GET /health HTTP/1.1\r\n" + HOST + b"X: " + b"a" * (10 << 20), 431),
            (
                b"POST /v1/stream HTTP/1.1\r\n" + HOST + b"Content-Length: 99999999999\r\n\r\n{",
                413,
            ),
        ],
    )
    def test_abuse_is_refused_in_json_and_reaches_nothing(self, served, head, status):
        before = len(served.seen)
        answer = served.raw(head)
        assert answer.status == status, answer
        assert answer.error["message"]
        assert nothing_reached(served, before)
        assert served.request("GET", "/health").status == 200

    def test_a_chunked_body_is_counted(self, tmp_path):
        with serve(tmp_path, bounds=Bounds(body=1000)) as served:
            head = b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST + b"Connection: close\r\n"
            head += b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
            small = head + b"64\r\n" + b" " * 100 + b"\r\n0\r\n\r\n"
            assert served.raw(small).status == 200
            large = head + b"".join(b"64\r\n" + b" " * 100 + b"\r\n" for _ in range(40))
            answer = served.raw(large)
            assert answer.status == 413
            assert answer.error["code"] == "body_too_large"
            assert len(served.bodies) == 1

    def test_a_route_may_bound_itself(self, tmp_path):
        def limit(method, path):
            return None if path == "/api/pull" else 10

        with serve(tmp_path, body_limit=limit) as served:
            body = b" " * 100
            assert served.request("POST", "/v1/chat/completions", body=body).status == 413
            assert served.request("POST", "/api/pull", body=body).status == 200

    def test_two_requests_on_one_connection(self, served):
        request = b"GET /health HTTP/1.1\r\n" + HOST
        data = request + b"\r\n" + request + b"Connection: close\r\n\r\n"
        with served.connect() as connection:
            connection.sendall(data)
            assert read_all(connection).count(b"HTTP/1.1 200") == 2


@pytest.fixture(scope="module")
def impatient(tmp_path_factory):
    bounds = Bounds(body_seconds=0.5)
    with serve(tmp_path_factory.mktemp("home"), bounds=bounds, head_seconds=0.5) as served:
        yield served


class TestSlow:
    """Bounds of tenths of a second, and patience of a minute: no clock of ours decides."""

    def drip(self, connection, data):
        """A byte at a time until the server has had enough; what it said."""
        connection.settimeout(0.1)
        said = b""
        deadline = time.monotonic() + 60
        for byte in data:
            assert time.monotonic() < deadline, "never closed"
            try:
                connection.sendall(bytes([byte]))
                piece = connection.recv(4096)
                if not piece:
                    return said
                said += piece
            except TimeoutError:
                continue
            except (BrokenPipeError, ConnectionResetError):
                return said
        raise AssertionError("all was taken")

    def test_a_head_a_byte_at_a_time(self, impatient):
        before = len(impatient.seen)
        with impatient.connect() as connection:
            said = self.drip(connection, b"GET /health HTTP/1.1\r\nX: " + b"a" * 600)
        assert Answer.of(said).status == 408
        assert nothing_reached(impatient, before)

    def test_a_connection_that_says_nothing(self, impatient):
        with impatient.connect() as connection:
            assert connection.recv(100) == b""

    def test_a_second_head_a_byte_at_a_time(self, impatient):
        with impatient.connect() as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n")
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
            said = self.drip(connection, b"GET /health HTTP/1.1\r\nX: " + b"a" * 600)
        assert b" 408 " in said

    def test_a_body_a_byte_at_a_time(self, impatient):
        head = b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST + b"Content-Length: 700\r\n"
        with impatient.connect() as connection:
            connection.sendall(head + b"Content-Type: application/json\r\n\r\n")
            said = self.drip(connection, b" " * 700)
        assert Answer.of(said).status == 408
        assert json.loads(Answer.of(said).body)["error"]["code"] == "body_too_slow"

    def test_many_at_once_harm_nobody(self, impatient):
        slow = [impatient.connect() for _ in range(200)]
        try:
            for connection in slow:
                connection.sendall(b"GET /health HTTP/1.1\r\nX: a")
            for _ in range(5):
                assert impatient.request("GET", "/health").status == 200
            for connection in slow:
                assert Answer.of(read_all(connection)).status == 408
        finally:
            for connection in slow:
                connection.close()

    def test_a_body_that_nobody_wants_ends(self, impatient):
        """Refused at once, while ten megabytes are still to come: the answer arrives."""
        head = b"POST /nothing HTTP/1.1\r\n" + HOST + b"Content-Length: 9000000\r\n\r\n"
        answer = impatient.raw(head + b" " * 9_000_000)
        assert answer.status == 404
        assert answer.headers["connection"] == "close"


def test_a_reader_that_reads_nothing_is_not_buffered_for(tmp_path):
    """FAULTS row 15: what waits for the slow reader is bounded; when it goes, all is freed."""
    with serve(tmp_path) as served:
        body = json.dumps({"pieces": 1 << 12, "size": 1 << 12}).encode()
        head = b"POST /v1/stream HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", served.port))
        connection.sendall(head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        connection.settimeout(60)
        assert connection.recv(1)
        before = -1
        while served.pieces != before:  # until nothing moves any more
            before = served.pieces
            time.sleep(0.5)
        assert served.pieces << 12 < 512 << 10  # the client's own buffer included
        connection.close()
        deadline = time.monotonic() + 60
        while not served.aborted and time.monotonic() < deadline:
            time.sleep(0.01)
        assert served.aborted == ["http.disconnect"]
