"""`insula merge`: a LoRA adapter becomes part of its model's weights."""

from __future__ import annotations

import math
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from insula.cli.inputs import not_an_input
from insula.cli.output import is_terminal, say, say_json, size
from insula.errors import ConfigError
from insula.hub.resolve import resolve
from insula.locale import text


def merge(
    base: Annotated[str, typer.Argument(metavar="BASE", help=text("help.merge_base"))],
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help=text("help.merge_adapter"))],
    target: Annotated[Path, typer.Argument(metavar="OUT", help=text("help.quantize_out"))],
    scale: Annotated[
        float, typer.Option("--scale", metavar="X", help=text("help.merge_scale"))
    ] = 1.0,
    force: Annotated[bool, typer.Option("--force", "-f", help=text("help.force"))] = False,
    as_json: Annotated[bool, typer.Option("--json", help=text("help.json"))] = False,
) -> None:
    """The command."""
    if not math.isfinite(scale):
        raise ConfigError(text("merge.bad_scale", value=scale))
    if target.is_dir():
        raise ConfigError(text("merge.target_is_folder", path=target))
    if target.exists() and not force:
        raise ConfigError(text("merge.target_exists", path=target))
    folder = Path(base) if Path(base).is_dir() else None
    path = resolve(base) if folder is None else folder
    if target.exists() and target.samefile(path):
        raise ConfigError(text("merge.same_file", path=target))
    not_an_input(target, path, Path(adapter))
    from insula.models.merge import merge as add

    notes: tuple[str, ...] = ()
    with ExitStack() as stack:
        bar = None
        if is_terminal(sys.stderr) and not as_json:
            from insula.cli.counter import Counter

            bar = Counter(text("merge.working"))
            stack.callback(bar.close)
        if folder is not None:
            from insula.models.convert import convert

            # Beside the target, which needs as much space anyway; gone when this ends.
            parent = target.absolute().parent
            held = stack.enter_context(tempfile.TemporaryDirectory(dir=parent, prefix=".insula-"))
            path = Path(held) / "base.gguf"
            notes = convert(folder, path)
        made = add(path, adapter, target, scale=scale, overwrite=force, progress=bar)
    if as_json:
        document = {"base": base, "adapter": str(adapter), "target": str(target), **asdict(made)}
        say_json({**document, "notes": [*notes, *made.notes]})
        return
    say(
        text(
            "merge.done",
            path=target,
            size=size(made.size),
            tensors=made.tensors,
            rank=made.rank,
            rms=f"{made.rms:.3g}",
        )
    )
    for line in (*notes, *made.notes):
        say(f"- {line}")
