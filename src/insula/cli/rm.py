"""`insula rm`: forget models of the store. Other programs' files are never touched."""

from __future__ import annotations

from typing import Annotated

import typer

from insula.cli.output import say, say_json, size
from insula.engine.packed_weights import sweep
from insula.errors import ConfigError
from insula.hub import catalog, local
from insula.hub.places import home
from insula.hub.store import ModelStore, Removed
from insula.locale import text


def rm(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL...", help=text("help.rm_models"))
    ] = None,
    unused: Annotated[bool, typer.Option("--unused", help=text("help.rm_unused"))] = False,
    as_json: Annotated[bool, typer.Option("--json", help=text("help.json"))] = False,
) -> None:
    """The command."""
    names = models or []
    if not names and not unused:
        raise ConfigError(text("rm.nothing_named"))
    store = ModelStore()
    removed: list[Removed] = []
    for name in names:
        program = name.partition("/")[0]
        if program in local.PROGRAMS:
            raise ConfigError(text("rm.not_ours", name=name, program=program))
        entry = catalog.find(name)
        removed.append(store.remove(entry.name if entry is not None else name))
        if not as_json:
            say(_told(removed[-1]))
    pruned = store.prune() if unused else None
    sweep(home())
    if as_json:
        say_json(
            {
                "removed": [
                    {"name": r.name, "freed": r.freed, "damaged": r.manifest is None}
                    for r in removed
                ],
                "unused": None
                if pruned is None
                else {"files": pruned.files, "freed": pruned.freed},
            }
        )
    elif pruned is not None:
        say(text("rm.pruned", files=pruned.files, freed=size(pruned.freed)))


def _told(removed: Removed) -> str:
    if removed.manifest is None:
        return text("rm.damaged", name=removed.name)
    return text("rm.removed", name=removed.name, freed=size(removed.freed))
