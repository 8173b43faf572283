"""`insula recommend`: what fits this machine, and about how fast it would answer."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from insula.cli.inputs import within
from insula.cli.output import columns, note, number, say, say_json, size
from insula.engine.context import MAX_CONTEXT
from insula.hub import advice, known_models
from insula.hub import recommend as recommender
from insula.hub.recommend import Advice
from insula.hub.store import ModelStore
from insula.locale import text


def recommend(
    ctx: Annotated[
        int, typer.Option("--ctx", "-c", metavar="N", help=text("help.recommend_ctx"))
    ] = 4096,
    everything: Annotated[bool, typer.Option("--all", help=text("help.recommend_all"))] = False,
    fast: Annotated[bool, typer.Option("--fast", help=text("help.recommend_fast"))] = False,
    as_json: Annotated[bool, typer.Option("--json", help=text("help.json"))] = False,
) -> None:
    """The command."""
    within("--ctx", ctx, MAX_CONTEXT)
    memory = advice.memory()
    rate = None if fast else _bandwidth()
    candidates = recommender.in_store(ModelStore())
    candidates += [recommender.of_known(model) for model in known_models.KNOWN]
    rows = recommender.advise(
        candidates, n_ctx=ctx, available=memory.available, bytes_per_second=rate
    )
    shown = rows if everything else [row for row in rows if row.fits is not False]
    if as_json:
        say_json(
            {
                "available_memory": memory.available,
                "bandwidth_gb_per_s": None if rate is None else round(rate / 1e9, 1),
                "share_of_bandwidth": recommender.SHARE,
                "models": [_document(row) for row in shown],
            }
        )
        return
    if not shown:
        say(text("recommend.nothing", ctx=ctx))
        return
    say(columns(_header(), [_row(row) for row in shown], right=(1, 2, 3, 4, 5)))
    note(text("recommend.estimates", ctx=f"{ctx:,}"))
    if rate is not None:
        note(
            text(
                "recommend.measured",
                rate=f"{rate / 1e9:.1f}",
                share=f"{recommender.SHARE:.0%}",
            )
        )


def _bandwidth() -> float | None:
    """Bytes per second; None where the native core is missing."""
    try:
        from insula import _native
    except ImportError:
        return None
    return recommender.bandwidth(int(_native.cpu_info()["threads"]))


def _header() -> tuple[str, ...]:
    return (
        text("list.name"),
        text("search.parameters"),
        text("list.size"),
        text("recommend.memory"),
        text("recommend.most_ctx"),
        text("recommend.speed"),
        text("list.licence"),
    )


def _row(row: Advice) -> tuple[str, ...]:
    candidate = row.candidate
    sign = "" if candidate.here else "~"
    speed = ""
    if row.tokens_per_second is not None:
        empty, full = row.tokens_per_second
        speed = f"{_rate(full)}-{_rate(empty)}"
    memory = sign + size(row.needed)
    return (
        candidate.name,
        number(candidate.parameters),
        sign + size(candidate.weights),
        memory if row.fits is not False else text("recommend.too_large", memory=memory),
        "?" if row.most_ctx is None else f"{row.most_ctx:,}",
        speed,
        candidate.licence or "",
    )


def _rate(tokens: float) -> str:
    return f"{tokens:.0f}" if tokens >= 10 else f"{tokens:.1f}"


def _document(row: Advice) -> dict[str, Any]:
    document = asdict(row)
    speed = document.pop("tokens_per_second")
    return {
        **document.pop("candidate"),
        **document,
        "estimated": not row.candidate.here,
        "tokens_per_second": None if speed is None else speed[0],
        "tokens_per_second_full_context": None if speed is None else speed[1],
    }
