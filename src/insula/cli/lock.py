"""`insula lock`: pin names to what they mean now, or see whether they still do."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from insula.cli.output import columns, say, say_json
from insula.errors import ConfigError
from insula.hub import catalog, lockfile
from insula.hub.store import ModelStore
from insula.locale import text


def lock(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL...", help=text("help.lock_models"))
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help=text("help.lock_remove"))] = False,
    as_json: Annotated[bool, typer.Option("--json", help=text("help.json"))] = False,
) -> None:
    """The command."""
    names = [entry.name if (entry := catalog.find(name)) else name for name in models or []]
    if remove:
        if not names:
            raise ConfigError(text("store.lock_nothing_named"))
        lockfile.unpin(names)
    elif names:
        lockfile.write(ModelStore(), names)
    rows = lockfile.compare(ModelStore())
    if as_json:
        say_json(
            {
                "path": str(lockfile.path()),
                "models": [{**asdict(pin), "state": state} for pin, state in rows],
            }
        )
    elif not rows:
        say(text("store.lock_empty", path=lockfile.path()))
    else:
        shown = {
            "same": text("store.lock_same"),
            "changed": text("store.lock_changed"),
            "missing": text("store.lock_missing"),
        }
        header = (text("list.name"), "SHA256", text("store.lock_state"))
        say(columns(header, [(pin.name, pin.sha256[:12], shown[state]) for pin, state in rows]))
    if any(state == "changed" for _, state in rows):
        raise typer.Exit(1)
