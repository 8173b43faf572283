"""`insula embed`: texts to vectors, documents ranked for a query, texts labelled."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from insula.cli.inputs import checked, read_stdin, stdin_is_terminal
from insula.cli.output import note, say, say_json
from insula.cli.transfers import TransferDisplay
from insula.errors import ConfigError
from insula.locale import text

if TYPE_CHECKING:
    from insula.llm import LLM


def embed(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=text("help.model"))],
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT", help=text("help.embed_texts"))
    ] = None,
    rank: Annotated[
        str | None, typer.Option("--rank", metavar="QUERY", help=text("help.embed_rank"))
    ] = None,
    label: Annotated[bool, typer.Option("--classify", help=text("help.embed_classify"))] = False,
    truncate: Annotated[bool, typer.Option("--truncate", help=text("help.embed_truncate"))] = False,
    dimensions: Annotated[
        int | None, typer.Option("--dimensions", metavar="N", help=text("help.embed_dimensions"))
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", metavar="N", help=text("help.threads"))
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help=text("help.json"))] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help=text("help.quiet"))] = False,
) -> None:
    """The command."""
    if rank is not None and label:
        raise ConfigError(text("embed.both"))
    listed = [checked(each) for each in texts or _lines()]
    if not listed:
        raise ConfigError(text("embed.no_text"))
    from insula.llm import LLM

    with TransferDisplay(quiet=quiet or as_json) as display:
        llm = LLM(model, n_threads=threads, download=True, progress=display)
    with llm:
        if rank is not None:
            ranked = llm.rerank(checked(rank), listed, truncate=truncate)
            if as_json:
                say_json([{"index": i, "score": score, "text": listed[i]} for i, score in ranked])
            else:
                for i, score in ranked:
                    say(f"{score:.4f}\t{listed[i]}")
        elif label:
            labelled = llm.classify(listed, truncate=truncate)
            if as_json:
                say_json(labelled)
            else:
                for found, each in zip(labelled, listed, strict=True):
                    name, p = next(iter(found.items()))
                    say(f"{name}\t{p:.4f}\t{each}")
        else:
            _vectors(llm, listed, truncate, dimensions, as_json=as_json, quiet=quiet)


def _vectors(
    llm: LLM,
    listed: list[str],
    truncate: bool,
    dimensions: int | None,
    *,
    as_json: bool,
    quiet: bool,
) -> None:
    found = llm.embed(listed, truncate=truncate, dimensions=dimensions)
    report = found.report
    if as_json:
        say_json(
            {
                "model": llm.model_info.name,
                "dimensions": found.vectors.shape[1],
                "tokens": report.tokens,
                "truncated": list(report.truncated),
                "notes": list(report.notes),
                "embeddings": found.vectors.tolist(),
            }
        )
        return
    for vector in found.vectors.tolist():
        say(json.dumps([round(x, 7) for x in vector]))
    if report.truncated:
        cut, limit = len(report.truncated), llm.n_ctx
        note(text("embed.truncated", count=cut, total=len(listed), limit=limit))
    if not quiet:
        note(
            text(
                "embed.summary",
                texts=len(listed),
                tokens=report.tokens,
                dimensions=found.vectors.shape[1],
                seconds=report.seconds,
            )
        )


def _lines() -> list[str]:
    """Standard input, a text a line, so that the answer's order is the lines'."""
    if stdin_is_terminal():
        raise ConfigError(text("embed.no_text"))
    lines = [line.removesuffix("\r") for line in read_stdin().removesuffix("\n").split("\n")]
    for number, line in enumerate(lines, 1):
        if not line.strip() and len(lines) > 1:
            raise ConfigError(text("embed.empty_line", line=number))
    if not lines[0].strip():
        raise ConfigError(text("embed.no_text"))
    return lines
