"""`insula quantize`: the same model in another format."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from insula.cli.output import is_terminal, say, say_json, size
from insula.errors import ConfigError
from insula.hub.resolve import resolve
from insula.locale import text
from insula.models.mixes import TARGETS
from insula.models.mixes import target as target_format


def quantize(
    source: Annotated[str, typer.Argument(metavar="IN", help=text("help.quantize_in"))],
    target: Annotated[Path, typer.Argument(metavar="OUT", help=text("help.quantize_out"))],
    fmt: Annotated[str, typer.Argument(metavar="FORMAT", help=text("help.quantize_format"))],
    force: Annotated[bool, typer.Option("--force", "-f", help=text("help.force"))] = False,
    as_json: Annotated[bool, typer.Option("--json", help=text("help.json"))] = False,
) -> None:
    """The command."""
    try:
        wanted = target_format(fmt)
    except ConfigError:
        known = ", ".join(TARGETS)
        raise ConfigError(text("quantize.no_such_format", name=fmt[:40], known=known)) from None
    path = resolve(source)
    if target.is_dir():
        raise ConfigError(text("quantize.target_is_folder", path=target))
    if target.exists() and not force:
        raise ConfigError(text("quantize.target_exists", path=target))
    if target.exists() and target.samefile(path):
        raise ConfigError(text("quantize.same_file", path=target))
    from insula.models.quantize import quantize_file

    bar = None
    if is_terminal(sys.stderr) and not as_json:
        from insula.cli.counter import Counter

        bar = Counter(text("quantize.working"))
    try:
        report = quantize_file(path, target, wanted.name, progress=bar, overwrite=force)
    finally:
        if bar is not None:
            bar.close()
    if as_json:
        say_json({"source": str(path), "target": str(target), **asdict(report)})
        return
    before, after = size(report.source_size), size(report.size)
    say(text("quantize.done", path=target, before=before, after=after))
    say(text("quantize.quality", bits=f"{report.bits_per_weight:.2f}", rmse=f"{report.rmse:.3g}"))
    for line in report.notes:
        say(f"- {line}")
