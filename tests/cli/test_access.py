"""insula keys, users and audit, as typed."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from cli.conftest import failed
from insula.store.audit_chain import HEAD_FILE
from insula.store.database import Database


@pytest.fixture
def home(env):
    return Path(env["INSULA_HOME"])


def made(insula, *args, **variables):
    done = insula("keys", "create", *args, "--json", **variables)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_key_is_printed_once_for_programs_and_people(insula, home):
    done = insula("keys", "create", "ci", "--tokens-per-day", "500", "--expires", "30d")
    assert done.returncode == 0, done.stderr
    secret = done.stdout.strip()
    assert secret.startswith("sk-insula-")
    assert "shown this once" in done.stderr
    listed = insula("keys", "list")
    shown = insula("keys", "show", "ci")
    for said in (listed.stdout, shown.stdout, insula("keys", "show", "ci", "--json").stdout):
        assert secret not in said
        assert "ci" in said
    assert "active" in listed.stdout
    assert "tokens a day: 500" in shown.stdout
    assert f"…{secret[-4:]}" in shown.stdout
    (key,) = json.loads(insula("keys", "list", "--json").stdout)["keys"]
    assert key["limits"]["tokens_per_day"] == 500
    assert 29.9 < (key["expires"] - time.time()) / 86_400 <= 30
    assert (key["scopes"], key["models"], key["state"]) == (["inference"], None, "active")


def test_rotate_and_revoke(insula):
    first = made(insula, "ci", "--scope", "admin", "--scope", "models", "--model", "m")
    done = insula("keys", "rotate", "ci", "--grace", "2h", "--json")
    second = json.loads(done.stdout)
    assert second["key"] != first["key"]
    assert second["tenant"] == first["tenant"]
    assert second["models"] == ["m"]
    old = json.loads(insula("keys", "show", first["id"], "--json").stdout)
    assert (old["state"], old["replaced_by"]) == ("active", second["id"])
    assert "replaced" in insula("keys", "list").stdout
    assert "works until" in insula("keys", "rotate", "ci", "--grace", "0").stderr
    assert insula("keys", "show", second["id"]).stdout.count("expired") == 1
    done = insula("keys", "revoke", first["id"], "ci")
    assert done.returncode == 0
    assert done.stdout.count("is revoked") == 2
    assert "ci" in failed(insula("keys", "rotate", "ci"), 2)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("create", "ci", "--scope", "root"), "inference, models, admin"),
        (("create", ""), "printable"),
        (("create", "ci", "--tokens-total", "0"), "whole number from 1"),
        (("create", "ci", "--expires", "soon"), "2027-01-31"),
        (("create", "ci", "--expires", "2001-01-01"), "expired already"),
        (("rotate", "ci", "--grace", "soon"), "90s, 30m"),
        (("create",), "NAME is missing"),
        (("lst",), "did you mean list"),
        (("--bogus",), "--bogus"),
    ],
)
def test_wrong_command_lines(insula, args, says):
    assert says in failed(insula("keys", *args), 2)


def test_what_is_not_there(insula):
    assert "insula keys list" in failed(insula("keys", "revoke", "none"), 1)
    assert "insula users list" in failed(insula("users", "rm", "none"), 1)
    assert "insula keys create" in insula("keys", "list").stdout
    assert "insula users add" in insula("users", "list").stdout


def test_several_are_revoked_or_none(insula):
    made(insula, "a")
    failed(insula("keys", "revoke", "a", "none"), 1)
    (key,) = json.loads(insula("keys", "list", "--json").stdout)["keys"]
    assert key["state"] == "active"
    assert "key.revoked" not in insula("audit", "show").stdout


def test_users(insula, env, home):
    done = insula("users", "add", "ana", "--role", "admin", stdin="correct horse\n")
    assert done.returncode == 0, done.stderr
    assert "ana may sign in now (admin)" in done.stdout
    assert "10 to 1024" in failed(insula("users", "add", "bea", stdin="short\n"), 2)
    assert "already" in failed(insula("users", "add", "ANA", stdin="correct horse\n"), 2)
    assert "user, admin" in failed(
        insula("users", "add", "bea", "--role", "x", stdin="correct horse\n"), 2
    )
    (user,) = json.loads(insula("users", "list", "--json").stdout)["users"]
    assert (user["name"], user["role"]) == ("ana", "admin")
    with Database.open(home / "insula.db") as store:
        before = store.row("SELECT password FROM users")
        assert insula("users", "passwd", "ana", stdin="battery staple\n").returncode == 0
        assert store.row("SELECT password FROM users") != before
    assert insula("users", "rm", "ana").returncode == 0
    shown = insula("audit", "show", "--json").stdout
    events = [json.loads(line)["event"] for line in shown.splitlines()]
    assert events == ["user.added", "user.password", "user.removed"]
    assert "horse" not in shown


def test_the_audit_log(insula, home):
    for name in ("a", "b", "c"):
        made(insula, name)
    done = insula("audit", "verify")
    assert done.returncode == 0
    assert done.stdout.startswith("3 records, each as it was written")
    head = insula("audit", "head").stdout.strip()
    assert head in done.stdout
    assert insula("audit", "verify", "--head", head).returncode == 0
    shown = insula("audit", "show", "-n", "2").stdout.splitlines()
    assert [line.split()[0] for line in shown] == ["2", "3"]
    assert "name=c" in shown[1]
    assert insula("audit", "show", "--after", "2").stdout.splitlines() == shown[1:]

    with Database.open(home / "insula.db") as store:
        store.run("UPDATE audit SET record = replace(record, '\"b\"', '\"x\"') WHERE seq = 2")
    done = insula("audit", "verify")
    assert done.returncode == 1
    assert "record 2: was changed" in done.stdout
    spanish = insula("audit", "verify", INSULA_LANG="es")
    assert "registro 2: se cambió" in spanish.stdout
    with Database.open(home / "insula.db") as store:
        store.run("DELETE FROM audit WHERE seq > 1")
        store.run("DELETE FROM audit_head")
    (home / HEAD_FILE).unlink()
    # Nothing on this machine knows of the rest any more; who kept the head does.
    assert insula("audit", "verify").returncode == 1
    verdict = json.loads(insula("audit", "verify", "--head", head, "--json").stdout)
    assert verdict["faults"] == [{"kind": "cut", "first": 2, "last": 3, "says": None}]
    assert "NUMBER:HASH" in failed(insula("audit", "verify", "--head", "x"), 2)


def test_the_audit_logs_key_is_needed(insula, home):
    made(insula, "a")
    (home / "audit.key").unlink()
    done = insula("audit", "verify")
    assert done.returncode == 1
    assert "only the open chain" in done.stderr
    assert "put it back" in failed(insula("keys", "create", "b"), 2)
    assert len(json.loads(insula("keys", "list", "--json").stdout)["keys"]) == 1


def test_an_encrypted_store(insula, env, home):
    key = {"INSULA_STORE_KEY": "correct horse battery staple"}
    made(insula, "a", **key)
    assert b"sk-insula" not in (home / "insula.db").read_bytes()
    assert not (home / "insula.db").read_bytes().startswith(b"SQLite")
    before = (home / "insula.db").read_bytes()
    for wrong in ({}, {"INSULA_STORE_KEY": "another key altogether"}):
        assert "does not open" in failed(insula("keys", "create", "b", **wrong), 2)
    assert (home / "insula.db").read_bytes() == before
    assert "16 and more" in failed(insula("keys", "list", INSULA_STORE_KEY="short"), 2)
    assert len(json.loads(insula("keys", "list", "--json", **key).stdout)["keys"]) == 1


@pytest.mark.parametrize("group", ["keys", "users", "audit"])
def test_help_in_both_languages(insula, group):
    english, spanish = insula(group, INSULA_LANG="en"), insula(group, "-h", INSULA_LANG="es")
    assert english.returncode == spanish.returncode == 0
    assert f"Usage: insula {group}" in english.stdout
    assert f"Uso: insula {group}" in spanish.stdout
    assert "Órdenes:" in spanish.stdout
    assert english.stdout.count("\n") > 8
