"""`insula cp`: a second name for a model; no byte is copied."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from insula.cli.output import say, say_json
from insula.hub import catalog
from insula.hub.create import new_name
from insula.hub.store import ModelStore
from insula.locale import text


def cp(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=text("help.store_model"))],
    name: Annotated[str, typer.Argument(metavar="NAME", help=text("help.new_name"))],
    force: Annotated[bool, typer.Option("--force", help=text("help.force_name"))] = False,
    as_json: Annotated[bool, typer.Option("--json", help=text("help.json"))] = False,
) -> None:
    """The command."""
    entry = catalog.find(model)
    source = model if entry is None else entry.name
    copied = ModelStore().copy(source, new_name(name), replacing=force)
    if as_json:
        say_json(asdict(copied))
    else:
        say(text("store.copied", source=source, name=copied.name))
