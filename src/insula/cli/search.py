"""`insula search`: well-known models without a network, or a hub's own search."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from insula.cli.inputs import within
from insula.cli.output import columns, note, number, say, say_json, size
from insula.cli.transfers import TransferDisplay
from insula.errors import ConfigError
from insula.hub import known_models
from insula.hub import search as searcher
from insula.hub.known_models import KnownModel
from insula.locale import text


def search(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="WORDS...", help=text("help.search_words"))
    ] = None,
    online: Annotated[bool, typer.Option("--online", help=text("help.search_online"))] = False,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", help=text("help.search_limit"))
    ] = 20,
    as_json: Annotated[bool, typer.Option("--json", help=text("help.json"))] = False,
) -> None:
    """The command."""
    asked = " ".join(words or [])
    within("--limit", limit, searcher.MOST)
    if online:
        _online(asked, limit, as_json=as_json)
        return
    found = known_models.find(asked)
    if as_json:
        say_json([{**asdict(m), "name": m.name, "approximate_size": m.q4_bytes} for m in found])
        return
    if not found:
        say(text("search.nothing", words=asked))
        return
    header = (
        text("list.name"),
        text("search.parameters"),
        text("search.about_size"),
        text("list.licence"),
        text("search.training"),
    )
    rows = [
        (m.name, number(m.parameters), "~" + size(m.q4_bytes), m.licence, _training(m))
        for m in found
    ]
    say(columns(header, rows, right=(1, 2)))
    note(text("search.how_to_pull"))


def _training(model: KnownModel) -> str:
    """What its makers published about the data; empty where they published nothing."""
    parts = []
    if model.tokens is not None:
        parts.append(text("search.tokens", count=f"{model.tokens / 1e12:g}"))
    return ": ".join([*parts, ", ".join(model.data)] if model.data else parts)


def _online(words: str, limit: int, *, as_json: bool) -> None:
    if not words.strip():
        raise ConfigError(text("search.needs_words"))
    with TransferDisplay(quiet=as_json) as display:
        found = searcher.search(words, limit=limit, progress=display)
    if as_json:
        say_json([{**asdict(row), "name": row.name} for row in found])
        return
    if not found:
        say(text("search.nothing", words=words))
        return
    rows = [
        (
            row.name,
            "" if row.downloads is None else f"{row.downloads:,}",
            row.licence or "",
            text("search.gated") if row.gated else "",
        )
        for row in found
    ]
    header = (text("list.name"), text("search.downloads"), text("list.licence"), "")
    say(columns(header, rows, right=(1,)))
