"""`insula export`: models as one portable file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from insula.cli.output import say, say_json, size
from insula.cli.transfers import TransferDisplay
from insula.errors import ConfigError
from insula.hub import bundle, catalog
from insula.hub.store import ModelStore
from insula.locale import text


def export(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help=text("help.rm_models"))],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help=text("help.export_output"))
    ],
    force: Annotated[bool, typer.Option("--force", help=text("help.force"))] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help=text("help.quiet"))] = False,
    as_json: Annotated[bool, typer.Option("--json", help=text("help.json"))] = False,
) -> None:
    """The command."""
    if output.exists() and (not force or not output.is_file()):
        raise ConfigError(text("store.target_exists", path=output))
    names = [entry.name if (entry := catalog.find(name)) else name for name in models]
    with TransferDisplay(quiet=quiet or as_json) as display:
        written = bundle.export(names, output, store=ModelStore(), progress=display)
    if as_json:
        names = [manifest.name for manifest in written]
        say_json({"path": str(output), "size": output.stat().st_size, "models": names})
    elif not quiet:
        count = len(written)
        say(text("store.exported", count=count, path=output, size=size(output.stat().st_size)))
