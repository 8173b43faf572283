"""One question, one answer on standard output, and nothing else there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from insula.cli.answer import Printer, document, print_all, remarks, statistics
from insula.cli.output import note, say_json
from insula.errors import ConfigError
from insula.hub.resolve import Located
from insula.locale import text
from insula.types import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Iterator

    from insula.llm import LLM
    from insula.types import Chunk


def give(
    llm: LLM,
    located: Located,
    question: str,
    *,
    system: str | None,
    params: SamplingParams,
    raw: bool,
    stats: bool,
    as_json: bool,
) -> None:
    """Stream the answer; with `as_json` print one document at the end."""
    if raw and system is not None:
        raise ConfigError(text("run.raw_has_no_system"))
    chunks: Iterator[Chunk]
    if raw or llm.chat_template is None:
        if not raw:
            note(text("run.no_template"))
        chunks = llm.stream(question, params)
    else:
        messages = [] if system is None else [{"role": "system", "content": system}]
        messages.append({"role": "user", "content": question})
        chunks = llm.chat(messages, params, stream=True)
    if as_json:
        completion = None
        for chunk in chunks:
            completion = chunk.completion or completion
        if completion is not None:
            say_json(document(completion, located.name))
        return
    printer = Printer()
    try:
        completion = print_all(chunks, printer)
    finally:
        if printer.text:
            printer.end()
    if completion is None:
        return
    for line in remarks(completion, limited=params.max_tokens is not None):
        note(line)
    if stats:
        note(statistics(completion.report))
