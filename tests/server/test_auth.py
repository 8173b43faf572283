"""Who is let in, to what, for how much: over real connections, with keys of a real store."""

from __future__ import annotations

import json
import re
import threading
import time

import pytest

from insula.errors import StoreFullError
from insula.security.passwords import hash_password
from insula.server import audit
from insula.server.gate import Gate
from insula.server.rates import Rates
from insula.store import keys, spending, users
from insula.store.audit_chain import read_records, verify
from insula.store.database import Database
from insula.store.keys import Limits
from server.guarded_app import ROUTES, Answer, read_all, serve

PASSWORD = "correct horse battery"


@pytest.fixture
def store(tmp_path):
    with Database.open(tmp_path / "insula.db") as store:
        yield store


@pytest.fixture
def served(tmp_path, store):
    with serve(tmp_path) as served:
        yield served


def make(store, name="k", **settings):
    return keys.create(store, name=name, now=time.time(), **settings)


def chat(served, key, tokens=None, **how):
    body = b"{}" if tokens is None else json.dumps({"tokens": tokens}).encode()
    return served.request("POST", "/v1/chat/completions", key=key, body=body, **how)


def records(store, event):
    return [record for _, record in read_records(store) if record["event"] == event]


class TestDenyByDefault:
    def test_every_route_asks_for_a_key_before_the_body(self, served, store):
        """FAULTS row 8: every route x no, a wrong, a revoked, an expired key, with a huge body."""
        make(store)
        revoked, revoked_secret = make(store, "r")
        keys.revoke(store, revoked.id, now=time.time())
        _, expired_secret = keys.create(store, name="e", now=1, expires=2)
        wrong = keys.PREFIX + "A" * 43
        for row in ROUTES:
            for secret in (None, wrong, revoked_secret, expired_secret):
                if row.scope == "open":
                    continue
                lines = f"{row.method} {row.path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                if secret:
                    lines += f"Authorization: Bearer {secret}\r\n"
                lines += "Content-Length: 9000000\r\n\r\n"
                answer = served.raw(lines.encode() + b"x" * 100_000)  # the rest never comes
                assert answer.status == 401, row
                assert answer.headers["www-authenticate"] == "Bearer"
                code = "invalid_api_key" if secret else "missing_api_key"
                assert answer.error["code"] == code
        assert served.seen == []
        assert served.request("GET", "/health").status == 200

    def test_a_path_that_is_not_there(self, served, store):
        _, secret = make(store)
        for path in ("/nothing", "/v1/models/", "//v1/models", "/V1/models", "/v1/../metrics"):
            assert served.request("GET", path).status == 401, path
            assert served.request("GET", path, key=secret).status == 404, path
        answer = served.request("DELETE", "/v1/models", key=secret)
        assert (answer.status, answer.headers["allow"]) == (405, "GET")
        assert served.seen == []

    def test_scopes(self, served, store):
        secrets = {scope: make(store, scope, scopes=(scope,))[1] for scope in keys.SCOPES}
        for row in ROUTES:
            if row.scope == "open" or row.path == "/session":
                continue
            for scope, secret in secrets.items():
                body = b"{}" if row.method != "GET" else None
                body = b'{"pieces": 1}' if row.path == "/v1/stream" else body
                answer = served.request(row.method, row.path, key=secret, body=body)
                assert answer.status == (200 if scope == row.scope else 403), (row, scope)
                if answer.status == 403:
                    assert answer.error["code"] == "insufficient_scope"

    def test_websockets_are_not_let_in(self, served):
        headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
        headers["Sec-WebSocket-Key"] = "AAAAAAAAAAAAAAAAAAAAAA=="
        assert served.request("GET", "/nothing", headers=headers).status == 404


class TestCredentials:
    def test_in_either_header(self, served, store):
        key, secret = make(store)
        for headers in (
            {"Authorization": f"Bearer {secret}"},
            {"authorization": f"bearer  {secret}"},
            {"X-Api-Key": secret},
            {"X-Api-Key": secret, "Authorization": f"Bearer {secret}"},
        ):
            assert served.request("GET", "/v1/models", headers=headers).status == 200
        assert {caller.id for _, caller in served.seen} == {key.id}

    def test_what_is_no_key(self, served, store):
        _, secret = make(store)
        _, other = make(store, "other")
        for headers in (
            {"Authorization": secret},
            {"Authorization": f"Basic {secret}"},
            {"Authorization": "Bearer "},
            {"Authorization": f"Bearer {secret[:-1]}"},
            {"Authorization": f"Bearer {secret}x"},
            {"Authorization": f"Bearer {secret.upper()}"},
            {"Authorization": f"Bearer {secret}", "X-Api-Key": other},
            {"X-Api-Key": "\xff\xfe"},
            {"X-Api-Key": "'; DROP TABLE keys; --"},
        ):
            answer = served.request("GET", "/v1/models", headers=headers)
            assert answer.status == 401, headers
        twice = f"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Api-Key: {secret}\r\n"
        assert served.raw(f"{twice}X-Api-Key: {other}\r\n\r\n".encode()).status == 400
        assert served.seen == []

    def test_without_any_key_this_machine_is_open_until_there_is_one(self, served, store):
        assert served.request("GET", "/metrics").status == 200
        # Clients of other servers send something; it is not looked at.
        assert chat(served, "sk-no-key-required").status == 200
        assert served.seen[-1][1].kind == "open"
        key, secret = make(store)
        assert served.request("GET", "/v1/models").status == 401
        assert chat(served, "sk-no-key-required").status == 401
        assert chat(served, secret).status == 200
        keys.revoke(store, key.id, now=time.time())
        assert served.request("GET", "/v1/models").status == 401

    def test_a_user_ends_the_openness_too(self, served, store):
        assert served.request("GET", "/v1/models").status == 200
        users.add(store, name="ana", role="user", password_hash="x", now=1)
        assert served.request("GET", "/v1/models").status == 401

    def test_where_keys_are_required_nobody_is_let_in_without(self, tmp_path):
        with serve(tmp_path, open_without_keys=False) as served:
            assert served.request("GET", "/v1/models").status == 401
            assert served.request("GET", "/health").status == 200

    def test_the_secret_is_nowhere_but_in_its_owners_hands(self, served, store, tmp_path):
        _, secret = make(store)
        assert chat(served, secret, 5).status == 200
        assert chat(served, secret + "x").status == 401
        token = secret.removeprefix(keys.PREFIX).encode()
        for file in tmp_path.iterdir():
            assert token not in file.read_bytes(), file
        assert len(token) == 43
        assert len({make(store, f"k{n}")[1] for n in range(20)}) == 20


class TestTenants:
    def test_each_key_is_a_tenant_and_keeps_it_over_rotation(self, served, store):
        """FAULTS row 19: what salts the prefix cache is never shared, and never lost."""
        one, first = make(store, "one")
        _, other = make(store, "two")
        _, new, rotated = keys.rotate(store, one.id, grace=3600, now=time.time())
        tenants = [json.loads(chat(served, s).body)["tenant"] for s in (first, other, rotated)]
        assert tenants[0] == tenants[2] == one.tenant == new.tenant
        assert tenants[0] != tenants[1]
        assert all(re.fullmatch(r"ten_[0-9a-f]{16}", tenant) for tenant in tenants)

    def test_models_of_a_key(self, served, store):
        _, secret = make(store, models=("small", "hf.co/o/r:Q4_K_M"))
        chat(served, secret)
        caller = served.seen[-1][1]
        assert caller.may_use("small")
        assert caller.may_use("hf.co/o/r:Q4_K_M")
        assert not caller.may_use("large")
        _, secret = make(store, "all")
        chat(served, secret)
        assert served.seen[-1][1].may_use("large")


class TestRevocation:
    def test_at_once_and_from_another_process(self, served, store):
        key, secret = make(store)
        for _ in range(3):
            assert chat(served, secret).status == 200
        keys.revoke(store, key.id, now=time.time())  # a connection that the server knows nothing of
        assert chat(served, secret).status == 401

    def test_a_stream_is_cut(self, served, store):
        key, secret = make(store)
        body = json.dumps({"pieces": 100_000, "pause": 0.05}).encode()
        head = f"POST /v1/stream HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Api-Key: {secret}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        with served.connect() as connection:
            connection.sendall(head.encode() + body)
            assert connection.recv(100)
            keys.revoke(store, key.id, now=time.time())
            said = read_all(connection)  # ends, or the socket's timeout fails the test
        assert not said.endswith(b"0\r\n\r\n")  # and not as if it were whole
        assert served.aborted == ["http.disconnect"]
        assert records(store, "request")[-1]["outcome"] == "revoked"

    def test_rotation_leaves_the_old_key_its_time(self, tmp_path, store):
        now = [1_000_000.0]
        with serve(tmp_path, clock=lambda: now[0]) as served:
            key, old = keys.create(store, name="k", now=now[0])
            _, _, new = keys.rotate(store, "k", grace=600, now=now[0])
            assert [chat(served, s).status for s in (old, new)] == [200, 200]
            now[0] += 599
            assert chat(served, old).status == 200
            now[0] += 1
            assert [chat(served, s).status for s in (old, new)] == [401, 200]
            assert keys.get(store, key.id).replaced_by is not None


class TestLimits:
    def test_requests_a_minute(self, tmp_path, store):
        pulse = [0.0]
        with serve(tmp_path, pulse=lambda: pulse[0]) as served:
            _, secret = make(store, limits=Limits(requests_per_minute=3))
            _, other = make(store, "other")
            assert [chat(served, secret).status for _ in range(4)] == [200, 200, 200, 429]
            answer = chat(served, secret)
            assert answer.headers["retry-after"] == "20"
            assert answer.error["code"] == "rate_limit_exceeded"
            assert "3 requests a minute" in answer.error["message"]
            assert chat(served, other).status == 200
            pulse[0] += 20
            assert [chat(served, secret).status for _ in range(2)] == [200, 429]

    def test_tokens_a_minute(self, tmp_path, store):
        pulse = [0.0]
        with serve(tmp_path, pulse=lambda: pulse[0]) as served:
            _, secret = make(store, limits=Limits(tokens_per_minute=60))
            assert chat(served, secret, 90).status == 200  # known when it has ended
            answer = chat(served, secret, 1)
            assert answer.status == 429
            assert answer.headers["retry-after"] == "31"
            assert served.request("GET", "/v1/models", key=secret).status == 200
            pulse[0] += 31
            assert chat(served, secret, 1).status == 200

    def test_tokens_a_day_survive_a_restart(self, tmp_path, store):
        day = 86_400.0 * 20_000
        now = [day + 3600]
        _, secret = keys.create(store, name="k", now=now[0], limits=Limits(tokens_per_day=100))
        with serve(tmp_path, clock=lambda: now[0]) as served:
            for _ in range(2):
                assert chat(served, secret, 60).status == 200
            assert served.seen[0][1].tokens_left == 100
        tenant = keys.list_keys(store)[0].tenant
        # Spending is dated by the real clock: give it the day that the gate believes in.
        store.run("UPDATE spending SET day = ?", (spending.day(now[0]),))
        with serve(tmp_path, clock=lambda: now[0]) as served:
            answer = chat(served, secret, 60)
            assert answer.status == 429
            assert answer.error["code"] == "budget_exceeded"
            assert answer.headers["retry-after"] == str(23 * 3600)
            assert served.request("GET", "/v1/models", key=secret).status == 200  # costs nothing
            now[0] += 23 * 3600
            assert chat(served, secret, 60).status == 200
        assert spending.spent(store, tenant, now=now[0]).total == 180

    def test_tokens_in_all_and_rotation_does_not_refill(self, served, store):
        _, secret = make(store, limits=Limits(tokens_total=100))
        assert chat(served, secret, 100).status == 200
        _, _, new = keys.rotate(store, "k", grace=60, now=time.time())
        for key in (secret, new):
            answer = chat(served, key, 1)
            assert answer.status == 429
            assert answer.error["code"] == "insufficient_quota"
            assert "retry-after" not in answer.headers  # coming back helps nothing

    def test_what_was_streamed_before_the_client_left_is_owed(self, served, store):
        key, secret = make(store)
        body = json.dumps({"pieces": 10_000, "pause": 0.01}).encode()
        head = f"POST /v1/stream HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Api-Key: {secret}\r\n"
        with served.connect() as connection:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
            assert connection.recv(100)
        deadline = time.monotonic() + 60
        while not records(store, "request") and time.monotonic() < deadline:
            time.sleep(0.01)
        record = records(store, "request")[0]
        assert record["outcome"] == "aborted"
        spent = spending.spent(store, key.tenant, now=time.time()).total
        assert 0 < spent == record["completion_tokens"] < 10_000

    def test_rates_refill_evenly_and_bound_a_burst(self):
        rates, limits = Rates(), Limits(requests_per_minute=60)
        assert sum(rates.wait("t", limits, 0.0) is None for _ in range(100)) == 60
        assert rates.wait("t", limits, 0.5) == ("requests", 0.5)
        assert rates.wait("t", limits, 1.0) is None
        assert sum(rates.wait("t", limits, 10_000.0) is None for _ in range(100)) == 60
        assert rates.wait("u", Limits(), 0.0) is None

    def test_many_tenants_are_forgotten_not_kept(self):
        rates = Rates()
        for number in range(25_000):
            rates.wait(f"t{number}", Limits(requests_per_minute=1), number * 0.1)
        assert len(rates._buckets) <= 10_001


class TestSettling:
    def test_the_record_is_on_the_disk_before_the_answer_ends(self, served, store):
        key, secret = make(store, scopes=("inference", "models"))
        answer = chat(served, secret, 7)
        (record,) = records(store, "request")
        assert answer.status == 200
        assert record | {"time": "", "ms": 0} == {
            "seq": record["seq"],
            "time": "",
            "event": "request",
            "kind": "key",
            "caller": key.id,
            "address": "127.0.0.1",
            "method": "POST",
            "route": "/v1/chat/completions",
            "status": 200,
            "outcome": "done",
            "model": "tiny",
            "prompt_tokens": 6,
            "completion_tokens": 1,
            "cached_tokens": 0,
            "ms": 0,
        }
        assert served.request("POST", "/api/pull", key=secret, body=b"{}").status == 200
        assert records(store, "request")[-1]["route"] == "/api/pull"
        assert served.request("GET", "/v1/models", key=secret).status == 200
        assert len(records(store, "request")) == 2  # looking changes nothing
        assert verify(store, store.path.parent).faults == ()

    def test_refusals_are_noted_without_what_was_sent_and_not_without_end(
        self, served, store, monkeypatch
    ):
        monkeypatch.setattr(audit, "NOTES", 5)
        make(store)
        for number in range(60):
            path = f"/v1/canary{number}"
            assert served.request("GET", path, key=f"sk-canary-{number}").status == 401
        deadline = time.monotonic() + 60
        while len(records(store, "request.denied")) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        noted = records(store, "request.denied")
        assert 5 <= len(noted) < 60
        assert "canary" not in json.dumps(noted)

    def test_a_full_disk_is_507_and_passes(self, served, store, monkeypatch):
        """FAULTS row 23: what cannot be recorded is not begun; looking still works."""
        _, secret = make(store)
        chain = served.audit._chain
        real = type(chain).append
        full = threading.Event()

        def append(self, store, record):
            if full.is_set():
                raise StoreFullError("no room")
            return real(self, store, record)

        monkeypatch.setattr(type(chain), "append", append)
        full.set()
        answer = chat(served, secret, 5)
        assert answer.status == 507
        assert answer.error["code"] == "storage_full"
        assert int(answer.headers["retry-after"]) > 0
        reached = len(served.seen)
        assert chat(served, secret, 5).status == 507
        assert len(served.seen) == reached  # nothing was computed for nothing
        assert served.request("GET", "/v1/models", key=secret).status == 200
        full.clear()
        deadline = time.monotonic() + 60
        while chat(served, secret, 5).status != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        # The first one's work was done and is charged, though its answer was not given.
        done = records(store, "request")
        assert [record["outcome"] for record in done] == ["done", "done"]
        tenant = keys.list_keys(store)[0].tenant
        assert spending.spent(store, tenant, now=time.time()).total == 10

    def test_a_store_that_does_not_answer_is_503(self, tmp_path, store):
        with serve(tmp_path) as served:
            _, secret = make(store)
            served.gate._store.close()
            answer = chat(served, secret)
            assert answer.status == 503
            assert answer.error["message"] == "the server's store does not answer"
            assert served.request("GET", "/health").status == 200


@pytest.fixture(scope="module")
def hashed():
    return hash_password(PASSWORD)


class TestUsers:
    def sign_in(self, served, name="ana", password=PASSWORD):
        body = json.dumps({"name": name, "password": password}).encode()
        return served.request("POST", "/session", body=body)

    def test_a_session(self, served, store, hashed):
        users.add(store, name="ana", role="user", password_hash=hashed, now=time.time())
        answer = self.sign_in(served, name="ANA")
        assert answer.status == 200
        cookie, *rest = answer.headers["set-cookie"].split("; ")
        assert set(rest) == {"Path=/", "Max-Age=43200", "HttpOnly", "SameSite=Strict"}
        csrf = json.loads(answer.body)["csrf"]
        page = {"Cookie": cookie}
        assert served.request("GET", "/v1/models", headers=page).status == 200
        assert served.seen[-1][1].name == "ana"
        # What changes something needs the token that another site's page cannot read.
        for given in ({}, {"X-CSRF-Token": "x"}, {"X-CSRF-Token": csrf[:-1]}):
            answer = chat(served, None, headers={**page, **given})
            assert (answer.status, answer.error["code"]) == (403, "csrf")
        signed = {**page, "X-CSRF-Token": csrf}
        assert chat(served, None, headers=signed).status == 200
        assert served.request("GET", "/metrics", headers=page).status == 403  # not an admin's
        assert served.request("DELETE", "/session", headers=signed).status == 200
        assert served.request("GET", "/v1/models", headers=page).status == 401
        token = cookie.partition("=")[2].encode()
        for file in store.path.parent.iterdir():
            assert token not in file.read_bytes()

    def test_a_new_password_and_a_removal_end_sessions(self, served, store, hashed):
        users.add(store, name="ana", role="admin", password_hash=hashed, now=time.time())
        for end in (
            lambda: users.set_password(store, "ana", hash_password(PASSWORD)),
            lambda: users.remove(store, "ana"),
        ):
            page = {"Cookie": self.sign_in(served).headers["set-cookie"].split(";")[0]}
            assert served.request("GET", "/metrics", headers=page).status == 200
            end()
            assert served.request("GET", "/metrics", headers=page).status == 401

    def test_the_last_users_removal_opens_nothing(self, served, store, hashed):
        users.add(store, name="ana", role="admin", password_hash=hashed, now=time.time())
        users.remove(store, "ana")
        assert served.request("GET", "/v1/models").status == 401

    def test_guessing_is_slowed_and_tells_nothing(self, tmp_path, store, hashed):
        pulse = [0.0]
        with serve(tmp_path, pulse=lambda: pulse[0]) as served:
            users.add(store, name="ana", role="user", password_hash=hashed, now=time.time())
            known = [self.sign_in(served, password="wrong password") for _ in range(5)]
            nobody = self.sign_in(served, name="nobody")
            assert {(a.status, a.body) for a in (*known, nobody)} == {(401, nobody.body)}
            paused = self.sign_in(served)  # the right one does not help now
            assert paused.status == 429
            assert int(paused.headers["retry-after"]) >= 1
            pulse[0] += 2
            assert self.sign_in(served).status == 200
            assert self.sign_in(served).status == 200


def test_what_admits_never_caches(store):
    gate = Gate(store, open_without_keys=False)
    key, secret = make(store)
    scope = {"method": "GET", "headers": [(b"x-api-key", secret.encode())]}
    caller = gate.admit(scope, "inference")
    assert gate.still_valid(caller)
    keys.revoke(store, key.id, now=time.time())
    assert not gate.still_valid(caller)


def test_answers_parse():
    assert Answer.of(b"HTTP/1.1 200 OK\r\nA: b\r\n\r\nx") == Answer(200, {"a": "b"}, b"x")
