"""`insula prune`: remove what no name needs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from insula.cli.output import say, say_json, size
from insula.engine.packed_weights import sweep
from insula.hub.places import home
from insula.hub.store import ModelStore
from insula.locale import text


def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help=text("help.prune_dry_run"))] = False,
    as_json: Annotated[bool, typer.Option("--json", help=text("help.json"))] = False,
) -> None:
    """The command."""
    pruned = ModelStore().prune(remove=not dry_run)
    if not dry_run:
        sweep(home())
    if as_json:
        say_json({**asdict(pruned), "dry_run": dry_run})
    else:
        key = "store.would_prune" if dry_run else "rm.pruned"
        say(text(key, files=pruned.files, freed=size(pruned.freed)))
