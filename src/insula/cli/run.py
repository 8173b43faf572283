"""`insula run`: a chat on a terminal, or one answer for a pipe."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from insula.chat.prompt import check_overflow
from insula.cli import one_answer, sampling_settings
from insula.cli.inputs import checked, read_stdin, something_is_piped_in, stdin_is_terminal
from insula.cli.output import note
from insula.cli.transfers import TransferDisplay
from insula.errors import ConfigError
from insula.hub import catalog
from insula.hub.resolve import locate
from insula.locale import text

if TYPE_CHECKING:
    from insula.chat.prompt import Overflow
    from insula.hub.resolve import Located
    from insula.llm import LLM


def run(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help=text("help.run_model"))
    ] = None,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help=text("help.run_prompt"))
    ] = None,
    system: Annotated[
        str | None, typer.Option("--system", "-s", metavar="TEXT", help=text("help.run_system"))
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", "-n", metavar="N", help=text("help.max_tokens"))
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", "-t", metavar="X", help=text("help.temperature")),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option("--top-k", metavar="N", help=text("help.top_k"))
    ] = None,
    top_p: Annotated[
        float | None, typer.Option("--top-p", metavar="X", help=text("help.top_p"))
    ] = None,
    min_p: Annotated[
        float | None, typer.Option("--min-p", metavar="X", help=text("help.min_p"))
    ] = None,
    typical_p: Annotated[
        float | None, typer.Option("--typical-p", metavar="X", help=text("help.typical_p"))
    ] = None,
    repeat_penalty: Annotated[
        float | None,
        typer.Option("--repeat-penalty", metavar="X", help=text("help.repeat_penalty")),
    ] = None,
    presence_penalty: Annotated[
        float | None,
        typer.Option("--presence-penalty", metavar="X", help=text("help.presence_penalty")),
    ] = None,
    frequency_penalty: Annotated[
        float | None,
        typer.Option("--frequency-penalty", metavar="X", help=text("help.frequency_penalty")),
    ] = None,
    repeat_last_n: Annotated[
        int | None,
        typer.Option("--repeat-last-n", metavar="N", help=text("help.repeat_last_n")),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help=text("help.seed"))] = None,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", metavar="TEXT", help=text("help.stop"))
    ] = None,
    samplers: Annotated[
        str | None, typer.Option("--samplers", metavar="A,B,...", help=text("help.samplers"))
    ] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help=text("help.ignore_eos"))] = False,
    ctx: Annotated[
        int | None, typer.Option("--ctx", "-c", metavar="N", help=text("help.ctx"))
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", metavar="N", help=text("help.threads"))
    ] = None,
    engine: Annotated[
        str | None, typer.Option("--engine", metavar="NAME", help=text("help.engine"))
    ] = None,
    speculate: Annotated[
        str | None,
        typer.Option("--speculate", metavar="off|ngram|MODEL", help=text("help.speculate")),
    ] = None,
    draft_tokens: Annotated[
        int | None, typer.Option("--draft-tokens", metavar="N", help=text("help.draft_tokens"))
    ] = None,
    overflow: Annotated[
        str | None, typer.Option("--overflow", metavar="POLICY", help=text("help.overflow"))
    ] = None,
    template: Annotated[
        str | None, typer.Option("--template", metavar="NAME|FILE", help=text("help.template"))
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help=text("help.raw"))] = False,
    stats: Annotated[bool, typer.Option("--stats", help=text("help.stats"))] = False,
    as_json: Annotated[bool, typer.Option("--json", help=text("help.run_json"))] = False,
) -> None:
    """The command."""
    settings = given(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        typical_p=typical_p,
        repeat_penalty=repeat_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        repeat_last_n=repeat_last_n,
        seed=seed,
        stop=tuple(stop) if stop else None,
        samplers=None if samplers is None else sampling_settings.parse("samplers", samplers),
        ignore_eos=ignore_eos or None,
    )
    # Whatever is wrong with the command line is told before a model is fetched or loaded.
    params = sampling_settings.params(settings)
    if overflow is not None:
        check_overflow(overflow)
    if prompt is None and model is not None and _is_question(model):
        model, prompt = None, model
    question = _question(prompt)
    if question is None and (as_json or raw):
        raise ConfigError(text("run.empty_prompt"))
    system = None if system is None else checked(system)
    template = None if template is None else _template(template)
    options = given(
        n_ctx=ctx,
        n_threads=threads,
        engine=engine,
        speculate=speculate,
        draft_tokens=draft_tokens,
    )
    with _model(model or catalog.DEFAULT_MODEL, options) as llm:
        if question is not None:
            one_answer.give(
                llm,
                question,
                system=system,
                template=template,
                overflow=cast("Overflow", overflow or "error"),
                params=params,
                raw=raw,
                stats=stats,
                as_json=as_json,
            )
            return
        policy = cast("Overflow", overflow or "drop_oldest")
        with llm.chat_session(system=system, template=template, overflow=policy) as session:
            from insula.cli.chat_loop import ChatLoop

            ChatLoop(llm, session, settings=settings, stats=stats).run()


def given(**options: Any) -> dict[str, Any]:
    """The options that were given."""
    return {key: value for key, value in options.items() if value is not None}


def _is_question(argument: str) -> bool:
    """Whether the only argument is a prompt for the default model: names have no spaces."""
    return any(c.isspace() for c in argument.strip()) and not os.path.exists(argument)  # noqa: PTH110 -- a question may be too long for a path


def _question(prompt: str | None) -> str | None:
    """The prompt with what was piped in after it; None for a chat. ConfigError if it is empty."""
    piped = ""
    if prompt == "-" or (prompt is None and not stdin_is_terminal()):
        piped, prompt = read_stdin(), None
    elif prompt is None:
        return None
    elif something_is_piped_in():
        piped = read_stdin()
    parts = [part for part in (prompt, piped) if part is not None and part.strip()]
    if not parts:
        raise ConfigError(text("run.empty_prompt"))
    return checked("\n\n".join(parts))


def _template(choice: str) -> str:
    """A chat format's name, or the Jinja source in the file of that name."""
    from insula.chat.formats import FORMATS

    if choice in FORMATS:
        return choice
    try:
        return Path(choice).read_text(encoding="utf-8")
    except (OSError, ValueError):
        known = ", ".join(FORMATS)
        raise ConfigError(text("run.no_such_template", choice=choice[:80], known=known)) from None


@contextmanager
def _model(name: str, options: dict[str, Any]) -> Iterator[LLM]:
    """The model and its draft model, downloaded first if they are not here yet."""
    located = _located(name)
    if options.get("speculate", "off") not in ("off", "ngram"):
        options = {**options, "speculate": _located(options["speculate"]).name}
    from insula.llm import LLM

    with LLM(located.name, **options) as llm:
        yield llm


def _located(name: str) -> Located:
    with TransferDisplay() as display:
        located = locate(name, allow_download=True, progress=display)
    if located.manifest is not None and located.manifest.licence and display.used:
        note(text("pull.licence", licence=located.manifest.licence))
    return located
