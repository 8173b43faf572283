"""The guards put together from settings, over plain HTTP and over TLS, from start to stop."""

from __future__ import annotations

import socket
import ssl
import threading
from contextlib import contextmanager

import pytest
import uvicorn

from insula.errors import ConfigError
from insula.server.connection import bounded
from insula.server.guards import Guards
from insula.server.settings import ServerSettings
from insula.store import keys, users
from insula.store.audit_chain import HEAD_FILE, read_head, read_records, verify
from insula.store.database import Database
from server.guarded_app import Answer, Application, Served, find, methods, read_all
from server.test_settings import make_certificate


@contextmanager
def running(guards, settings):
    """uvicorn with the guarded application; stopped in good order."""
    served = Served(logins=guards.logins)
    listening = socket.create_server(("127.0.0.1", 0))
    served.port = listening.getsockname()[1]
    config = uvicorn.Config(
        guards.around(Application(served)),
        http=bounded(settings.head_seconds),
        h11_max_incomplete_event_size=settings.head,
        ws="none",
        lifespan="on",
        log_config=None,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def opened(tmp_path, settings, **how):
    return Guards.open(settings, find=find, methods=methods, path=tmp_path / "insula.db", **how)


def test_from_start_to_stop(tmp_path):
    settings = ServerSettings(body=100, allowed_hosts=("llm.example",))
    guards = opened(tmp_path, settings)
    assert guards.warnings == ()
    with running(guards, settings) as served, Database.open(tmp_path / "insula.db") as store:
        _, secret = keys.create(store, name="k", now=1)
        assert served.request("POST", "/v1/chat/completions", body=b"{}").status == 401
        ok = served.request("POST", "/v1/chat/completions", key=secret, body=b'{"tokens": 3}')
        assert ok.status == 200
        large = b" " * 101
        assert served.request("POST", "/v1/chat/completions", key=secret, body=large).status == 413
        assert served.request("GET", "/health", headers={"Host": "llm.example"}).status == 200
        assert served.request("GET", "/health", headers={"Host": "evil.example"}).status == 403
    # What was noted without waiting is there too, and the head file names the end.
    with Database.open(tmp_path / "insula.db") as store:
        events = [record["event"] for _, record in read_records(store)]
        assert sorted(events) == ["request", "request.denied"]
        verdict = verify(store, tmp_path)
        assert verdict.faults == ()
        assert read_head(tmp_path / HEAD_FILE)[0] == verdict.head


def test_a_network_is_refused_before_anything_listens(tmp_path):
    settings = ServerSettings(host="0.0.0.0")
    with pytest.raises(ConfigError, match="insula keys create"):
        opened(tmp_path, settings)
    with Database.open(tmp_path / "insula.db") as store:
        keys.create(store, name="k", now=1)
    guards = opened(tmp_path, settings)
    assert "without TLS" in guards.warnings[0]
    guards.writer.close()
    guards.store.close()


def test_over_tls_the_cookie_is_for_tls_alone(tmp_path):
    cert, key = make_certificate(tmp_path)
    settings = ServerSettings(tls_cert=cert, tls_key=key)
    guards = opened(tmp_path, settings)
    with Database.open(tmp_path / "insula.db") as store:
        users.add(store, name="ana", role="user", password_hash="h", now=1)
        _, token = users.sign_in(store, "ana", old="h", fresh=None, now=2**31, seconds=60)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

    def ask(served, name):
        with served.connect() as plain, context.wrap_socket(plain) as connection:
            lines = f"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nCookie: {name}={token}\r\n"
            connection.sendall(f"{lines}Connection: close\r\n\r\n".encode())
            return Answer.of(read_all(connection)).status

    with running(guards, settings) as served:
        assert ask(served, "__Host-insula_session") == 200
        assert ask(served, "insula_session") == 401


def test_energy_is_recorded_where_the_machine_counts(tmp_path):
    root = tmp_path / "powercap"
    zone = root / "intel-rapl:0"
    zone.mkdir(parents=True)
    for name, value in (("name", "package-0"), ("max_energy_range_uj", 10**9), ("energy_uj", 0)):
        (zone / name).write_text(f"{value}\n")
    for folder, expected in ((root, True), (tmp_path / "none", False)):
        settings = ServerSettings(energy_root=folder)
        guards = opened(tmp_path, settings)
        with running(guards, settings) as served:
            assert served.request("POST", "/v1/chat/completions", body=b"{}").status == 200
        with Database.open(tmp_path / "insula.db") as store:
            *_, (_, record) = read_records(store)
        assert ("joules" in record) is expected
        assert record.get("joules", 0.0) == 0.0
