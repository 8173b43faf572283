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
from insula.cli.inputs import (
    checked,
    read_stdin,
    something_is_piped_in,
    stdin_is_terminal,
    within,
)
from insula.cli.output import note
from insula.cli.transfers import TransferDisplay
from insula.config import KV_TYPES, WEIGHTS
from insula.engine.context import MAX_CONTEXT
from insula.engine.load import MAX_THREADS
from insula.errors import ConfigError, NotFoundError
from insula.hub import catalog
from insula.hub.names import parse_reference
from insula.hub.resolve import locate
from insula.locale import text
from insula.security.small_file import NotRegularError, TooLongError, read_small

if TYPE_CHECKING:
    from insula.chat.prompt import Overflow
    from insula.hub.resolve import Located
    from insula.llm import LLM


#: Settings that are whole numbers; the others are decimal.
_WHOLE = {
    *("top_k", "repeat_last_n", "seed", "mirostat"),
    *("dry_allowed_length", "dry_penalty_last_n"),
}


def _number(key: str) -> Any:
    """The option of a setting that is a number, by the key of its help."""
    name = key.removeprefix("help.")
    option = "--" + name.replace("_", "-")
    return typer.Option(option, metavar="N" if name in _WHOLE else "X", help=text(key))


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
    top_k: Annotated[int | None, _number("help.top_k")] = None,
    top_p: Annotated[float | None, _number("help.top_p")] = None,
    min_p: Annotated[float | None, _number("help.min_p")] = None,
    typical_p: Annotated[float | None, _number("help.typical_p")] = None,
    repeat_penalty: Annotated[float | None, _number("help.repeat_penalty")] = None,
    presence_penalty: Annotated[float | None, _number("help.presence_penalty")] = None,
    frequency_penalty: Annotated[float | None, _number("help.frequency_penalty")] = None,
    repeat_last_n: Annotated[int | None, _number("help.repeat_last_n")] = None,
    dry_multiplier: Annotated[float | None, _number("help.dry_multiplier")] = None,
    dry_base: Annotated[float | None, _number("help.dry_base")] = None,
    dry_allowed_length: Annotated[int | None, _number("help.dry_allowed_length")] = None,
    dry_penalty_last_n: Annotated[int | None, _number("help.dry_penalty_last_n")] = None,
    dry_sequence_breaker: Annotated[
        list[str] | None,
        typer.Option(
            "--dry-sequence-breaker", metavar="TEXT", help=text("help.dry_sequence_breakers")
        ),
    ] = None,
    top_n_sigma: Annotated[float | None, _number("help.top_n_sigma")] = None,
    xtc_probability: Annotated[float | None, _number("help.xtc_probability")] = None,
    xtc_threshold: Annotated[float | None, _number("help.xtc_threshold")] = None,
    dynatemp_range: Annotated[float | None, _number("help.dynatemp_range")] = None,
    dynatemp_exponent: Annotated[float | None, _number("help.dynatemp_exponent")] = None,
    mirostat: Annotated[int | None, _number("help.mirostat")] = None,
    mirostat_tau: Annotated[float | None, _number("help.mirostat_tau")] = None,
    mirostat_eta: Annotated[float | None, _number("help.mirostat_eta")] = None,
    seed: Annotated[int | None, _number("help.seed")] = None,
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
    kv_type: Annotated[
        str | None, typer.Option("--kv-type", metavar="TYPE", help=text("help.kv_type"))
    ] = None,
    speculate: Annotated[
        str | None,
        typer.Option("--speculate", metavar="off|ngram|MODEL", help=text("help.speculate")),
    ] = None,
    draft_tokens: Annotated[
        int | None, typer.Option("--draft-tokens", metavar="N", help=text("help.draft_tokens"))
    ] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", metavar="memory|mmap", help=text("help.weights"))
    ] = None,
    cache_dir: Annotated[
        str | None, typer.Option("--cache-dir", metavar="DIR", help=text("help.cache_dir"))
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
        dry_multiplier=dry_multiplier,
        dry_base=dry_base,
        dry_allowed_length=dry_allowed_length,
        dry_penalty_last_n=dry_penalty_last_n,
        dry_sequence_breakers=_breakers(dry_sequence_breaker),
        top_n_sigma=top_n_sigma,
        xtc_probability=xtc_probability,
        xtc_threshold=xtc_threshold,
        dynatemp_range=dynatemp_range,
        dynatemp_exponent=dynatemp_exponent,
        mirostat=mirostat,
        mirostat_tau=mirostat_tau,
        mirostat_eta=mirostat_eta,
        seed=seed,
        stop=tuple(stop) if stop else None,
        samplers=None if samplers is None else sampling_settings.parse("samplers", samplers),
        ignore_eos=ignore_eos or None,
    )
    # Whatever is wrong with the command line is told before a model is fetched or loaded.
    sampling_settings.params(settings)
    within("--ctx", ctx, MAX_CONTEXT)
    within("--threads", threads, MAX_THREADS)
    if kv_type is not None and kv_type not in KV_TYPES:
        allowed = ", ".join(KV_TYPES)
        raise ConfigError(text("run.no_such_kv_type", found=kv_type[:40], allowed=allowed))
    if weights is not None and weights not in WEIGHTS:
        allowed = ", ".join(WEIGHTS)
        raise ConfigError(text("run.no_such_weights", found=weights[:40], allowed=allowed))
    if overflow is not None:
        check_overflow(overflow)
    if prompt is None and model is not None and _is_question(model):
        model, prompt = None, model
    if prompt is None and model is not None and not stdin_is_terminal():
        question = _piped_question(model)
    else:
        question = _question(prompt)
    if question is None and (as_json or raw):
        raise ConfigError(text("run.empty_prompt"))
    system = None if system is None else checked(system)
    template = None if template is None else _template(template)
    options = given(
        n_ctx=ctx,
        n_threads=threads,
        engine=engine,
        kv_type=kv_type,
        speculate=speculate,
        draft_tokens=draft_tokens,
        weights=weights,
        cache_dir=cache_dir,
    )
    with _model(model or catalog.DEFAULT_MODEL, options) as llm:
        if question is not None:
            one_answer.give(
                llm,
                question,
                system=system,
                template=template,
                overflow=cast("Overflow", overflow or "error"),
                params=sampling_settings.params(settings, llm.default_params),
                raw=raw,
                stats=stats,
                as_json=as_json,
            )
            return
        # A server's context is not known here, and nothing can be dropped to fit it.
        usual = "error" if llm.model_info.engine == "remote" else "drop_oldest"
        policy = cast("Overflow", overflow or usual)
        with llm.chat_session(system=system, template=template, overflow=policy) as session:
            from insula.cli.chat_loop import ChatLoop

            ChatLoop(llm, session, settings=settings, stats=stats).run()


def given(**options: Any) -> dict[str, Any]:
    """The options that were given."""
    return {key: value for key, value in options.items() if value is not None}


def _breakers(given_texts: list[str] | None) -> tuple[str, ...] | None:
    """What --dry-sequence-breaker gives; a single "none" is no breaker at all."""
    if not given_texts:
        return None
    if [given_text.lower() for given_text in given_texts] == ["none"]:
        return ()
    return tuple(t.replace("\\n", "\n").replace("\\t", "\t") for t in given_texts)


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


def _piped_question(model: str) -> str | None:
    """What came on standard input for `model`. Where nothing came and there is no such model, it
    was meant as a prompt, perhaps: the NotFoundError says how to ask."""
    from insula.engine.load_elsewhere import is_address, is_folder

    try:
        return _question(None)
    except ConfigError:
        known_kind = is_address(model) or is_folder(model) or catalog.find(model)
        if not known_kind and parse_reference(model) is None:
            try:
                locate(model)
            except NotFoundError:
                known = ", ".join(sorted(catalog.CATALOG))
                raise NotFoundError(
                    text(
                        "run.no_such_model",
                        name=model[:120],
                        known=known,
                        default=catalog.DEFAULT_MODEL,
                    )
                ) from None
        raise


def _template(choice: str) -> str:
    """A chat format's name, or the Jinja source in the file of that name."""
    from insula.chat.formats import FORMATS

    if choice in FORMATS:
        return choice
    from insula.chat.sandbox import MAX_SOURCE

    shown = choice[:80]
    try:
        return read_small(Path(choice), 4 * MAX_SOURCE).decode("utf-8-sig")  # 4 bytes a character
    except NotRegularError:
        raise ConfigError(text("run.not_a_file", path=shown)) from None
    except TooLongError:
        limit = MAX_SOURCE >> 10
        raise ConfigError(text("run.template_too_long", path=shown, limit=limit)) from None
    except UnicodeDecodeError:
        raise ConfigError(text("run.template_not_text", path=shown)) from None
    except (OSError, ValueError):
        known = ", ".join(FORMATS)
        raise ConfigError(text("run.no_such_template", choice=shown, known=known)) from None


@contextmanager
def _model(name: str, options: dict[str, Any]) -> Iterator[LLM]:
    """The model and its draft model, downloaded first if they are not here yet."""
    from insula.engine.load_elsewhere import is_address, is_folder

    if not is_address(name) and not is_folder(name):  # else there is nothing to fetch
        name = _located(name).name
    if options.get("speculate", "off") not in ("off", "ngram"):
        options = {**options, "speculate": _located(options["speculate"]).name}
    from insula.llm import LLM

    with LLM(name, **options) as llm:
        for line in llm.model_info.notes:
            # What was asked for and cannot be had, by the person or by the model's Modelfile.
            if "cache_dir" in line or line in llm.defaults.notes:
                note(line)
        yield llm


def _located(name: str) -> Located:
    with TransferDisplay() as display:
        located = locate(name, allow_download=True, progress=display)
    if located.manifest is not None and located.manifest.licence and display.used:
        note(text("pull.licence", licence=located.manifest.licence))
    return located
