"""`insula bench`: how fast a model reads a prompt and writes an answer here.

Medians over repetitions, each with a prompt of its own, so that no cache helps. Greedy, with the
end of the answer ignored, so that every repetition does the same work.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from insula.cli.counter import Counter
from insula.cli.inputs import within
from insula.cli.output import columns, is_terminal, say, say_json
from insula.engine.load import MAX_THREADS
from insula.errors import ConfigError
from insula.formats.gguf import GGUFFile
from insula.hub import catalog
from insula.hub.resolve import Located, locate
from insula.locale import text
from insula.models.load import summarize
from insula.types import Report, SamplingParams

if TYPE_CHECKING:
    from insula.llm import LLM


def bench(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help=text("help.run_model"))
    ] = catalog.DEFAULT_MODEL,
    prompt_tokens: Annotated[
        int, typer.Option("--prompt-tokens", "-p", metavar="N", help=text("help.bench_prompt"))
    ] = 512,
    new_tokens: Annotated[
        int, typer.Option("--max-tokens", "-n", metavar="N", help=text("help.bench_new"))
    ] = 128,
    repetitions: Annotated[
        int, typer.Option("--repetitions", "-r", metavar="N", help=text("help.bench_repetitions"))
    ] = 5,
    threads: Annotated[
        int | None, typer.Option("--threads", metavar="N", help=text("help.threads"))
    ] = None,
    engine: Annotated[
        str | None, typer.Option("--engine", metavar="NAME", help=text("help.engine"))
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help=text("help.json"))] = False,
) -> None:
    """The command."""
    for name, value in (
        ("--prompt-tokens", prompt_tokens),
        ("--max-tokens", new_tokens),
        ("--repetitions", repetitions),
    ):
        if value < 1:
            raise ConfigError(text("bench.at_least_one", option=name, value=value))
    within("--threads", threads, MAX_THREADS)
    located = locate(model)
    _check_fits(located, prompt_tokens, new_tokens)
    from insula.llm import LLM

    begun = time.perf_counter()
    n_ctx = prompt_tokens + new_tokens
    llm = LLM(located.name, n_ctx=n_ctx, n_threads=threads, engine=engine, cache_dir="")
    loading = time.perf_counter() - begun
    counter = Counter(text("bench.working")) if is_terminal(sys.stderr) and not as_json else None
    try:
        reports = measure(llm, prompt_tokens, new_tokens, repetitions, counter)
    finally:
        if counter is not None:
            counter.close()
        llm.close()
    found = {
        "model": located.name,
        "path": str(located.path),
        "sha256": located.manifest.sha256 if located.manifest else None,
        "engine": reports[0].engine,
        "engine_reason": reports[0].engine_reason,
        "isa": reports[0].isa,
        "threads": reports[0].threads,
        "load_seconds": loading,
        "prompt_tokens": prompt_tokens,
        "completion_tokens": new_tokens,
        "repetitions": repetitions,
        "prefill_tokens_per_second": _spread([r.prompt_tokens_per_second for r in reports]),
        "decode_tokens_per_second": _spread([r.decode_tokens_per_second for r in reports]),
        "seconds_to_first_token": _spread([r.time_to_first_token for r in reports]),
    }
    if as_json:
        say_json(found)
        return
    say(f"{located.name}: {found['engine']} {found['isa']}, {found['threads']} {_threads()}")
    rows = [
        _row(text("bench.prefill", count=prompt_tokens), found["prefill_tokens_per_second"]),
        _row(text("bench.decode", count=new_tokens), found["decode_tokens_per_second"]),
    ]
    header = ("", text("bench.median"), text("bench.low"), text("bench.high"))
    say(columns(header, rows, right=(1, 2, 3)))


def _check_fits(located: Located, prompt_tokens: int, new_tokens: int) -> None:
    """Raise ConfigError, before anything is loaded, for more tokens than the model knows."""
    with GGUFFile.open(located.path, allow_split=True) as file:
        limit = summarize(file).context_length
    total = prompt_tokens + new_tokens
    if limit is not None and total > limit:
        raise ConfigError(
            text(
                "bench.beyond_context",
                limit=limit,
                prompt=prompt_tokens,
                new=new_tokens,
                total=total,
            )
        )


def measure(
    llm: LLM, prompt_tokens: int, new_tokens: int, repetitions: int, counter: Counter | None = None
) -> list[Report]:
    """One report per repetition, after one that is not counted."""
    params = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True)
    reports = []
    for at in range(repetitions + 1):
        # Ordinary tokens in an order of their own: the prefix cache finds nothing.
        chosen = random.Random(at)
        ids = [chosen.randrange(llm.tokenizer.vocab_size) for _ in range(prompt_tokens)]
        completion = llm.generate(ids, params)
        if at:
            reports.append(completion.report)
        if counter is not None:
            counter(at + 1, repetitions + 1)
    return reports


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _row(name: str, spread: Any) -> tuple[str, str, str, str]:
    return name, f"{spread['median']:.1f}", f"{spread['min']:.1f}", f"{spread['max']:.1f}"


def _threads() -> str:
    return text("bench.threads")
