"""`insula keys`: who may use the server. Every change is in the audit log with it, or not made."""

from __future__ import annotations

import re
import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from insula.cli.output import columns, facts, note, say, say_json
from insula.errors import ConfigError
from insula.locale import text
from insula.server.audit_here import recorded
from insula.store import keys as table
from insula.store import spending
from insula.store.database import Database
from insula.store.keys import Key, Limits
from insula.store.place import open_store

_DURATION = re.compile(r"(\d{1,9})\s*([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_Json = Annotated[bool, typer.Option("--json", help=text("help.json"))]
_Name = Annotated[str, typer.Argument(metavar="KEY", help=text("help.keys_name"))]


def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help=text("help.keys_new"))],
    scope: Annotated[
        list[str] | None, typer.Option("--scope", metavar="SCOPE", help=text("help.keys_scope"))
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option("--model", metavar="MODEL", help=text("help.keys_model"))
    ] = None,
    requests_per_minute: Annotated[
        int | None, typer.Option(metavar="N", help=text("help.keys_rpm"))
    ] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option(metavar="N", help=text("help.keys_tpm"))
    ] = None,
    tokens_per_day: Annotated[
        int | None, typer.Option(metavar="N", help=text("help.keys_tpd"))
    ] = None,
    tokens_total: Annotated[
        int | None, typer.Option(metavar="N", help=text("help.keys_total"))
    ] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="WHEN", help=text("help.keys_expires"))
    ] = None,
    as_json: _Json = False,
) -> None:
    """The command."""
    now = time.time()
    limits = Limits(
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        tokens_per_day=tokens_per_day,
        tokens_total=tokens_total,
    )
    until = None if expires is None else moment(expires, now)
    with open_store() as store:
        with recorded(store) as record:
            key, secret = table.create(
                store,
                name=name,
                now=now,
                scopes=tuple(scope or ("inference",)),
                models=None if model is None else tuple(model),
                limits=limits,
                expires=until,
            )
            record("key.created", key=key.id, name=key.name, scopes=" ".join(key.scopes))
        _show_new(store, key, secret, as_json=as_json)


def list_keys(as_json: _Json = False) -> None:
    """The command."""
    now = time.time()
    with open_store() as store:
        found = [(key, document(store, key, now)) for key in table.list_keys(store)]
    if as_json:
        say_json({"keys": [shown for _, shown in found]})
    elif not found:
        say(text("access.no_keys"))
    else:
        header = (
            text("access.head_name"),
            "ID",
            text("access.head_scopes"),
            text("access.head_state"),
            text("access.head_today"),
            text("access.head_expires"),
        )
        rows = [
            (
                key.name,
                key.id,
                " ".join(key.scopes),
                state(key, now),
                str(shown["tokens_today"]),
                when(key.expires),
            )
            for key, shown in found
        ]
        say(columns(header, rows, right=(4,)))


def show(name: _Name, as_json: _Json = False) -> None:
    """The command."""
    now = time.time()
    with open_store() as store:
        key = table.get(store, name)
        shown = document(store, key, now)
    if as_json:
        say_json(shown)
        return
    told = (
        (text("access.limit_rpm"), key.limits.requests_per_minute),
        (text("access.limit_tpm"), key.limits.tokens_per_minute),
        (text("access.limit_tpd"), key.limits.tokens_per_day),
        (text("access.limit_total"), key.limits.tokens_total),
    )
    limits = [f"{what}: {value}" for what, value in told if value is not None]
    say(
        facts(
            (
                (text("access.head_name"), key.name),
                ("ID", key.id),
                (text("access.ends_in"), f"…{key.hint}"),
                (text("access.head_state"), state(key, now)),
                (text("access.head_scopes"), " ".join(key.scopes)),
                (
                    text("access.models"),
                    text("access.all") if key.models is None else "\n".join(key.models),
                ),
                (text("access.limits"), "\n".join(limits) or text("access.none")),
                (
                    text("access.used"),
                    text(
                        "access.used_tokens",
                        today=shown["tokens_today"],
                        total=shown["tokens_total"],
                    ),
                ),
                (text("access.created"), when(key.created)),
                (text("access.head_expires"), when(key.expires)),
            )
        )
    )


def rotate(
    name: _Name,
    grace: Annotated[str, typer.Option(metavar="TIME", help=text("help.keys_grace"))] = "24h",
    as_json: _Json = False,
) -> None:
    """The command."""
    seconds = 0 if grace == "0" else duration(grace)
    with open_store() as store:
        with recorded(store) as record:
            old, new, secret = table.rotate(store, name, grace=seconds, now=time.time())
            record("key.rotated", key=old.id, name=old.name, by=new.id)
        if not as_json:
            note(text("access.rotated", id=old.id, until=when(old.expires)))
        _show_new(store, new, secret, as_json=as_json)


def revoke(
    names: Annotated[list[str], typer.Argument(metavar="KEY...", help=text("help.keys_name"))],
    as_json: _Json = False,
) -> None:
    """The command."""
    now = time.time()
    with open_store() as store:
        with recorded(store) as record:
            revoked = []
            for name in names:
                key = table.revoke(store, name, now=now)
                record("key.revoked", key=key.id, name=key.name)
                revoked.append(key)
        if as_json:
            say_json({"keys": [document(store, key, now) for key in revoked]})
            return
    for key in revoked:
        say(text("access.revoked", name=key.name, id=key.id))


COMMANDS = {
    "create": (create, "help.keys_create"),
    "list": (list_keys, "help.keys_list"),
    "show": (show, "help.keys_show"),
    "rotate": (rotate, "help.keys_rotate"),
    "revoke": (revoke, "help.keys_revoke"),
}


def document(store: Database, key: Key, now: float) -> dict[str, Any]:
    """A key as programs see it, without its secret."""
    used = spending.spent(store, key.tenant, now=now)
    return {
        "id": key.id,
        "name": key.name,
        "ends_in": key.hint,
        "tenant": key.tenant,
        "state": key.state(now),
        "scopes": list(key.scopes),
        "models": None if key.models is None else list(key.models),
        "limits": asdict(key.limits),
        "tokens_today": used.today,
        "tokens_total": used.total,
        "created": key.created,
        "expires": key.expires,
        "revoked": key.revoked,
        "replaced_by": key.replaced_by,
    }


def state(key: Key, now: float) -> str:
    """For a person."""
    found = key.state(now)
    if found == "active" and key.replaced_by is not None:
        return text("access.state_replaced")
    known = {
        "active": text("access.state_active"),
        "expired": text("access.state_expired"),
        "revoked": text("access.state_revoked"),
    }
    return known[found]


def when(seconds: int | None) -> str:
    """A moment for a person, in this machine's time; empty for never."""
    if seconds is None:
        return ""
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M")


def duration(written: str) -> int:
    """Seconds from 90s, 30m, 24h, 7d, 4w. Raises ConfigError."""
    match = _DURATION.fullmatch(written.strip().lower())
    if match is None:
        raise ConfigError(text("access.bad_duration", value=written[:40]))
    return int(match[1]) * _SECONDS[match[2]]


def moment(written: str, now: float) -> int:
    """A duration from now, or a date: 2027-01-31, or with a time behind. Raises ConfigError."""
    if _DURATION.fullmatch(written.strip().lower()):
        return int(now) + duration(written)
    try:
        return int(datetime.fromisoformat(written.strip()).astimezone().timestamp())
    except (ValueError, OverflowError, OSError):
        raise ConfigError(text("access.bad_moment", value=written[:40])) from None


def _show_new(store: Database, key: Key, secret: str, *, as_json: bool) -> None:
    """The only time that the secret is seen."""
    if as_json:
        say_json({**document(store, key, time.time()), "key": secret})
        return
    say(secret)
    note(text("access.shown_once", name=key.name, id=key.id))
