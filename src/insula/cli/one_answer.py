"""One question, one answer on standard output, and nothing else there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from insula.cli.answer import Printer, document, print_all, remarks, statistics
from insula.cli.output import note, say_json
from insula.errors import ConfigError
from insula.locale import text
from insula.types import SamplingParams

if TYPE_CHECKING:
    from insula.chat.prompt import Overflow
    from insula.engine.stream import Stream
    from insula.llm import LLM


def give(
    llm: LLM,
    question: str,
    *,
    system: str | None,
    template: str | None,
    overflow: Overflow,
    params: SamplingParams,
    raw: bool,
    stats: bool,
    as_json: bool,
) -> None:
    """Stream the answer; with `as_json` print one document at the end."""
    stream = _stream(llm, question, system, template, overflow, params, raw=raw)
    if as_json:
        for _ in stream:
            pass
        if stream.completion is not None:
            say_json(document(stream.completion, llm.model_info.name))
        return
    printer = Printer()
    try:
        print_all(stream, printer)
    except KeyboardInterrupt:
        if printer.text:
            printer.end()
        raise
    printer.end()
    completion = stream.completion
    if completion is None:
        return
    limited = params.max_tokens is not None
    for line in remarks(completion, limited=limited, known=llm.model_info.notes):
        note(line)
    if stats:
        for line in llm.model_info.notes:
            note(line)
        note(statistics(completion.report))


def _stream(
    llm: LLM,
    question: str,
    system: str | None,
    template: str | None,
    overflow: Overflow,
    params: SamplingParams,
    *,
    raw: bool,
) -> Stream:
    if raw and (system is not None or template is not None):
        raise ConfigError(text("run.raw_is_raw"))
    if not raw and template is None and not llm.model_info.has_chat_template:
        note(text("run.no_template"))
        raw = True
    if raw:
        policy = overflow if overflow != "drop_oldest" else "error"
        return llm.stream(question, params, overflow=policy)
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages.append({"role": "user", "content": question})
    return llm.chat_stream(messages, params, template=template, overflow=overflow)
