"""How a completion is made: by the engine as it runs, or step by step where a program looks in.

`streamed` is the engine's own stream. `stepped` does the same in Python, token by token, for
logits processors, stopping criteria and logits_all; without any of them it gives the same tokens.
Both keep `TokenState` up to date.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from insula.compat.llama_cpp.answers import Finish, Piece, Shown, columns
from insula.compat.llama_cpp.errors import in_their_types, theirs
from insula.compat.llama_cpp.llama_types import CompletionLogprobs
from insula.compat.llama_cpp.sampling import LogitsProcessorList, StoppingCriteriaList
from insula.compat.llama_cpp.steps import TokenState
from insula.engine.request import Tokenizer
from insula.engine.sampling import log_probabilities
from insula.engine.stops import StopStrings
from insula.engine.stream import Stream
from insula.llm import LLM
from insula.types import Constraint, SamplingParams, TokenLogprob


@in_their_types
def streamed(
    llm: LLM,
    state: TokenState,
    ids: Sequence[int],
    params: SamplingParams,
    constraint: Constraint | None = None,
) -> Iterator[Piece]:
    """The engine's answer. What it refuses is raised here, before the first piece."""
    sequence = list(ids)

    def ended(token_ids: list[int], finish: Finish) -> None:
        # The last token of an answer that was cut off has been chosen, not evaluated.
        state.ids = sequence + (token_ids[:-1] if finish == "length" else token_ids)
        state.logits = None

    return pieces(llm.stream(sequence, params, constraint=constraint), ended)


def pieces(
    stream: Stream, ended: Callable[[list[int], Finish], None] | None = None
) -> Iterator[Piece]:
    """An answer of the engine's. ended: told its tokens and the reason, before the last piece."""
    token_ids: list[int] = []
    with theirs():
        for chunk in stream:
            finish: Finish | None = None
            if chunk.finish_reason is not None:
                finish = "length" if chunk.finish_reason == "length" else "stop"
            token_ids += chunk.token_ids
            if finish is not None and ended is not None:
                ended(token_ids, finish)
            yield Piece(
                text=chunk.text,
                token_ids=chunk.token_ids,
                logprobs=chunk.logprobs or (),
                finish=finish,
            )


def stepped(
    state: TokenState,
    tokenizer: Tokenizer,
    ids: Sequence[int],
    params: SamplingParams,
    *,
    most: int,
    processors: LogitsProcessorList | None,
    criteria: StoppingCriteriaList | None,
) -> Iterator[Piece]:
    """The same by hand. most: tokens, at most.

    A criterion sees the ids evaluated and the logits after them, and ends the answer before the
    token that would come next.
    """
    detokenizer = tokenizer.detokenizer(skip_special=True, continues=True)
    stops = StopStrings(params.stop)
    finish: Finish = "length"
    with theirs():
        begin(state, ids)
        for n in range(1, most + 1):
            token_id = state.sample(params, processors=processors).token_id
            logits = state.last_logits()
            if criteria is not None and criteria(np.array(state.ids, np.int32), logits):
                finish = "stop"
                break
            if token_id in tokenizer.eog_ids:
                finish = "stop"
                break
            scored: tuple[TokenLogprob, ...] = ()
            if params.logprobs is not None:
                logprob, top = log_probabilities(logits, token_id, params.logprobs)
                scored = (
                    TokenLogprob(
                        token_id=token_id,
                        token=tokenizer.token_bytes(token_id),
                        logprob=logprob,
                        top=tuple((i, tokenizer.token_bytes(i), p) for i, p in top),
                    ),
                )
            text = stops.push(detokenizer.push(token_id))
            yield Piece(text=text, token_ids=(token_id,), logprobs=scored)
            if stops.hit is not None:
                finish = "stop"
                break
            if n < most:
                state.eval([token_id])
        rest = stops.push(detokenizer.flush())
        yield Piece(text=rest + stops.flush(), finish=finish)


def begin(state: TokenState, ids: Sequence[int]) -> None:
    """Bring the state to `ids`, keeping what it has of them."""
    kept = state.common(ids)
    state.keep(kept)
    state.mirostat_mu = None
    state.eval(ids[kept:])


def column_maker(
    llm: LLM, ids: list[int], top: int, *, echo: bool, offset: int, shown: Shown
) -> Callable[[Sequence[TokenLogprob]], CompletionLogprobs]:
    """How the columns of log probabilities are made, once the completion is there.

    echo: those of the prompt come first, without a begin token; nothing comes before the first
    token, so its are None.
    """
    if not echo:
        return lambda entries: columns(entries, offset=offset, shown=shown)

    def with_prompt(entries: Sequence[TokenLogprob]) -> CompletionLogprobs:
        rows = llm.logits(ids[:-1]) if len(ids) > 1 else ()
        scored = [TokenLogprob(token_id=ids[0], token=b"", logprob=0.0)]
        for token_id, row in zip(ids[1:], rows, strict=True):
            logprob, likeliest = log_probabilities(row, token_id, top)
            alternatives = tuple((i, b"", p) for i, p in likeliest)
            scored.append(
                TokenLogprob(token_id=token_id, token=b"", logprob=logprob, top=alternatives)
            )
        if ids[0] == llm.tokenizer.bos_id:
            del scored[0]
        table = columns([*scored, *entries], offset=0, shown=shown)
        if table["tokens"]:
            table["token_logprobs"][0] = None
            table["top_logprobs"][0] = None
        return table

    return with_prompt
