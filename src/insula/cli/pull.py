"""`insula pull`: bring a model here."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from insula.cli.output import say, say_json, size
from insula.cli.transfers import TransferDisplay
from insula.hub import pull as puller
from insula.hub.store import ModelStore
from insula.locale import text


def pull(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=text("help.pull_model"))],
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help=text("help.quiet"))] = False,
    as_json: Annotated[bool, typer.Option("--json", help=text("help.json"))] = False,
) -> None:
    """The command."""
    store = ModelStore()
    with TransferDisplay(quiet=quiet or as_json) as display:
        manifest = puller.pull(model, store=store, progress=display)
    if as_json:
        say_json({**asdict(manifest), "path": str(store.path(manifest))})
    elif not quiet:
        say(text("pull.ready", name=manifest.name, size=size(manifest.model_size)))
        if manifest.licence:
            say(text("pull.licence", licence=manifest.licence))
