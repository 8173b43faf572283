"""`insula convert`: a Hugging Face folder becomes a GGUF file, and the other way round; the parts
of a split GGUF file become one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, cast

import typer

from insula.cli.inputs import not_an_input
from insula.cli.output import is_terminal, say, say_json, size
from insula.config import parse_size
from insula.errors import ConfigError
from insula.formats.gguf import GGUFFile
from insula.hub.resolve import resolve
from insula.locale import text
from insula.models.convert import FloatFormat
from insula.models.join import join

DTYPES = ("auto", "f32", "f16", "bf16")


def convert(
    source: Annotated[str, typer.Argument(metavar="IN", help=text("help.convert_in"))],
    target: Annotated[Path, typer.Argument(metavar="OUT", help=text("help.convert_out"))],
    dtype: Annotated[
        str, typer.Option("--dtype", metavar="TYPE", help=text("help.convert_dtype"))
    ] = "auto",
    shard: Annotated[
        str | None,
        typer.Option("--max-shard-size", metavar="SIZE", help=text("help.convert_shard")),
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help=text("help.force"))] = False,
    as_json: Annotated[bool, typer.Option("--json", help=text("help.json"))] = False,
) -> None:
    """The command."""
    if dtype not in DTYPES:
        raise ConfigError(text("convert.bad_dtype", value=dtype[:40], known=", ".join(DTYPES)))
    kind = cast("FloatFormat", dtype)
    bar = None
    if is_terminal(sys.stderr) and not as_json:
        from insula.cli.counter import Counter

        bar = Counter(text("convert.working"))
    try:
        if Path(source).is_dir():
            if shard is not None:
                raise ConfigError(text("convert.shard_is_for_folders", path=source))
            if target.exists() and not target.is_dir() and not force:
                raise ConfigError(text("convert.file_exists", path=target))
            not_an_input(target, Path(source))
            from insula.models.convert import convert as to_gguf

            notes = to_gguf(source, target, dtype=kind, overwrite=force, progress=bar)
            found: dict[str, object] = {"source": source, "size": target.stat().st_size}
            done = text("convert.wrote_file", path=target, size=size(target.stat().st_size))
        elif (count := _parts(path := resolve(source))) > 1:
            if target.exists() and not force:
                raise ConfigError(text("convert.file_exists", path=target))
            if shard is not None or dtype != "auto":
                raise ConfigError(text("convert.joined_as_they_are", path=path.name))
            total = join(path, target, overwrite=force, progress=bar)
            notes = (text("convert.joined", count=count),)
            found = {"source": str(path), "size": total}
            done = text("convert.wrote_file", path=target, size=size(total))
        else:
            if target.exists():
                raise ConfigError(text("convert.folder_exists", path=target))
            from insula.models.export import SHARD_BYTES, export

            most = SHARD_BYTES if shard is None else _size(shard)
            report = export(path, target, dtype=kind, shard_bytes=most, progress=bar)
            notes = report.notes
            found = {"source": str(path), "size": report.size, "files": list(report.files)}
            files = len(report.files)
            done = text("convert.wrote_folder", path=target, size=size(report.size), files=files)
    finally:
        if bar is not None:
            bar.close()
    if as_json:
        say_json({**found, "target": str(target), "notes": list(notes)})
        return
    say(done)
    for line in notes:
        say(f"- {line}")


def _size(value: str) -> int:
    try:
        return parse_size(value, name="--max-shard-size")
    except ConfigError:
        raise ConfigError(text("convert.bad_size", value=value[:40])) from None


def _parts(path: Path) -> int:
    """Of how many files the model is."""
    with GGUFFile.open(path, allow_split=True) as file:
        return file.split_count
