"""`insula create`: a model out of a Modelfile."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from insula.chat.formats import FORMATS
from insula.chat.prompt import usable
from insula.chat.templates import ChatTemplate
from insula.cli.inputs import read_stdin
from insula.cli.output import note, say, say_json, size
from insula.cli.transfers import TransferDisplay
from insula.errors import ConfigError, NotFoundError, TemplateError
from insula.hub import create as creator
from insula.hub import modelfile
from insula.hub.store import ModelStore
from insula.locale import text
from insula.security.small_file import NotRegularError, TooLongError, read_small


def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help=text("help.new_name"))],
    file: Annotated[
        str, typer.Option("--file", "-f", metavar="FILE", help=text("help.create_file"))
    ] = "Modelfile",
    in_place: Annotated[bool, typer.Option("--in-place", help=text("help.in_place"))] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help=text("help.quiet"))] = False,
    as_json: Annotated[bool, typer.Option("--json", help=text("help.json"))] = False,
) -> None:
    """The command."""
    said = modelfile.parse(read_stdin() if file == "-" else _read(Path(file)))
    if said.template is not None:
        _try(said.template)
    folder = Path.cwd() if file == "-" else Path(file).parent
    store = ModelStore()
    with TransferDisplay(quiet=quiet or as_json) as display:
        created = creator.create(
            name, said, folder=folder, store=store, progress=display, in_place=in_place
        )
    notes = (*created.notes, *usable(created.manifest.defaults.template)[1])
    if as_json:
        say_json({**asdict(created.manifest), "notes": list(notes)})
        return
    for line in notes:
        note(line)
    if not quiet:
        manifest = created.manifest
        say(text("pull.ready", name=manifest.name, size=size(manifest.model_size)))


def _read(path: Path) -> str:
    try:
        return read_small(path, modelfile.MAX_CHARACTERS).decode("utf-8-sig")
    except FileNotFoundError:
        raise NotFoundError(text("store.no_modelfile", path=path)) from None
    except (NotRegularError, TooLongError, UnicodeDecodeError):
        raise ConfigError(text("store.bad_modelfile", path=path)) from None


def _try(template: str) -> None:
    """Raise ConfigError for a template that fails where every template must work."""
    if template in FORMATS:
        return
    source, notes = usable(template)
    if notes or source is None:
        return  # said when the model is made
    try:
        ChatTemplate(source, bos_token="", eos_token="").render(
            [{"role": "user", "content": "hello"}]
        )
    except TemplateError as error:
        raise ConfigError(text("store.bad_template", reason=error)) from None
