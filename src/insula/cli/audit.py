"""`insula audit`: whether the log is as it was written, and what is in it."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from insula.cli.output import note, say, say_json, write
from insula.errors import ConfigError
from insula.locale import text
from insula.store.audit_chain import (
    Fault,
    head_line,
    last_head,
    parse_head,
    read_records,
    verify,
)
from insula.store.place import open_store

_Json = Annotated[bool, typer.Option("--json", help=text("help.json"))]


def verify_log(
    head: Annotated[
        str | None, typer.Option(metavar="NUMBER:HASH", help=text("help.audit_known"))
    ] = None,
    as_json: _Json = False,
) -> None:
    """The command. Exit code 1 if anything is wrong."""
    try:
        known = None if head is None else parse_head(head)
    except ValueError:
        raise ConfigError(text("access.bad_head")) from None
    with open_store() as store:
        verdict = verify(store, store.path.parent, known=known)
    if as_json:
        say_json(
            {
                "whole": not verdict.faults and verdict.with_key,
                "records": verdict.records,
                "head": head_line(verdict.head),
                "with_key": verdict.with_key,
                "faults": [
                    {"kind": f.kind, "first": f.seq, "last": f.last, "says": f.found}
                    for f in verdict.faults
                ],
            }
        )
    else:
        for fault in verdict.faults:
            say(_told(fault))
        if not verdict.with_key and verdict.records:
            note(text("access.audit_no_key"))
        key = "access.audit_faults" if verdict.faults else "access.audit_whole"
        say(
            text(
                key,
                records=verdict.records,
                faults=len(verdict.faults),
                head=head_line(verdict.head),
            )
        )
    if verdict.faults or (verdict.records and not verdict.with_key):
        raise typer.Exit(1)


def show(
    last: Annotated[int, typer.Option("-n", "--last", metavar="N", help=text("help.audit_n"))] = 20,
    after: Annotated[
        int | None, typer.Option(metavar="NUMBER", help=text("help.audit_after"))
    ] = None,
    as_json: _Json = False,
) -> None:
    """The command. One line per record: JSON, or its fields."""
    with open_store() as store:
        start = max(0, last_head(store).seq - max(0, last)) if after is None else after
        for seq, record in read_records(store, after=start):
            if as_json:
                write(json.dumps({"seq": seq, **record}, allow_nan=False) + "\n")
                continue
            said = " ".join(
                f"{name}={value}"
                for name, value in record.items()
                if name not in ("seq", "time", "event")
            )
            say(f"{seq}  {record.get('time', '')}  {record.get('event', '')}  {said}".rstrip())


def head() -> None:
    """The command."""
    with open_store() as store:
        say(head_line(last_head(store)))


COMMANDS = {
    "verify": (verify_log, "help.audit_verify"),
    "show": (show, "help.audit_show"),
    "head": (head, "help.audit_head"),
}


def _told(fault: Fault) -> str:
    which = str(fault.seq) if fault.seq == fault.last else f"{fault.seq}-{fault.last}"
    texts = {
        "edited": text("access.fault_edited", which=which),
        "missing": text("access.fault_missing", which=which),
        "moved": text("access.fault_moved", which=which, found=fault.found),
        "unlinked": text("access.fault_unlinked", which=which),
        "cut": text("access.fault_cut", which=which),
        "head": text("access.fault_head", which=which),
        "unknown_head": text("access.fault_unknown_head"),
    }
    return texts[fault.kind]
