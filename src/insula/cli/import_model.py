"""`insula import`: a GGUF file or a bundle of this machine into the store."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from insula.cli.output import say, say_json, size
from insula.cli.transfers import TransferDisplay
from insula.errors import ConfigError
from insula.hub import bundle
from insula.hub.create import new_name
from insula.hub.pull_file import take_file
from insula.hub.store import ModelStore
from insula.locale import text


def import_model(
    file: Annotated[Path, typer.Argument(metavar="FILE", help=text("help.import_file"))],
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help=text("help.import_name"))
    ] = None,
    in_place: Annotated[bool, typer.Option("--in-place", help=text("help.in_place"))] = False,
    force: Annotated[bool, typer.Option("--force", help=text("help.force_name"))] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help=text("help.quiet"))] = False,
    as_json: Annotated[bool, typer.Option("--json", help=text("help.json"))] = False,
) -> None:
    """The command."""
    store = ModelStore()
    whole = bundle.is_bundle(file)
    if whole and (name is not None or in_place):
        raise ConfigError(text("store.bundle_has_names"))
    chosen = None if name is None else new_name(name)
    with TransferDisplay(quiet=quiet or as_json) as display:
        if whole:
            taken = bundle.take(file, store=store, progress=display, replacing=force)
        else:
            taken = [take_file(file, chosen, store, display, in_place=in_place, replacing=force)]
    if as_json:
        say_json([{**asdict(manifest), "path": str(store.path(manifest))} for manifest in taken])
    elif not quiet:
        for manifest in taken:
            say(text("pull.ready", name=manifest.name, size=size(manifest.model_size)))
