"""From pieces of an answer to llama-cpp-python's dictionaries, key by key.

A piece is some text with the tokens that made it. The same pieces make a completion, a chat's
answer, and the chunks of either, so that streamed and whole agree.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from insula.chat.tool_calls import CallReader, as_message, read
from insula.chat.tools import CallFormat
from insula.compat.llama_cpp.llama_types import (
    ChatCompletionLogprobs,
    ChatCompletionResponseMessage,
    ChatCompletionStreamResponseDelta,
    CompletionLogprobs,
    CompletionUsage,
    CreateChatCompletionResponse,
    CreateChatCompletionStreamResponse,
    CreateCompletionResponse,
)
from insula.types import TokenLogprob

Finish = Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Some text and its tokens. The last piece of an answer has the reason why it ended."""

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: Finish | None = None


@dataclass(frozen=True, kw_only=True)
class Head:
    """What every dictionary of one answer repeats."""

    model: str
    id: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4()}")
    created: int = field(default_factory=lambda: int(time.time()))


#: A token as text; control tokens and parts of characters show nothing.
Shown = Callable[[int], str]


def completion(
    head: Head,
    pieces: Iterable[Piece],
    *,
    n_prompt: int,
    echo: str,
    logprobs: Callable[[Sequence[TokenLogprob]], CompletionLogprobs] | None,
) -> CreateCompletionResponse:
    """A whole completion. logprobs: how its columns are made, None where none are wanted."""
    taken = list(pieces)
    n_tokens = sum(len(piece.token_ids) for piece in taken)
    scored = [entry for piece in taken for entry in piece.logprobs]
    usage: CompletionUsage = {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_tokens,
        "total_tokens": n_prompt + n_tokens,
    }
    return {
        "id": head.id,
        "object": "text_completion",
        "created": head.created,
        "model": head.model,
        "choices": [
            {
                "text": echo + "".join(piece.text for piece in taken),
                "index": 0,
                "logprobs": logprobs(scored) if logprobs is not None else None,
                "finish_reason": taken[-1].finish if taken else None,
            }
        ],
        "usage": usage,
    }


def completion_chunks(
    head: Head, pieces: Iterable[Piece], *, offset: int, shown: Shown, scored: bool
) -> Iterator[CreateCompletionResponse]:
    """One chunk per piece that shows something or is scored; the last has no text, but the
    reason. offset: where the completion's text begins."""

    def chunk(
        text: str, logprobs: CompletionLogprobs | None, finish: Finish | None
    ) -> CreateCompletionResponse:
        return {
            "id": head.id,
            "object": "text_completion",
            "created": head.created,
            "model": head.model,
            "choices": [{"text": text, "index": 0, "logprobs": logprobs, "finish_reason": finish}],
        }

    for piece in pieces:
        if piece.text or (scored and piece.logprobs):
            table = columns(piece.logprobs, offset=offset, shown=shown) if scored else None
            yield chunk(piece.text, table, None)
            offset += len(piece.text)
        if piece.finish is not None:
            yield chunk("", None, piece.finish)


def columns(entries: Sequence[TokenLogprob], *, offset: int, shown: Shown) -> CompletionLogprobs:
    """Log probabilities column by column. The chosen token is always among the top ones.

    offset: of the first token in the text, in characters.
    """
    table: CompletionLogprobs = {
        "tokens": [],
        "text_offset": [],
        "token_logprobs": [],
        "top_logprobs": [],
    }
    for entry in entries:
        token = shown(entry.token_id)
        top = {shown(token_id): logprob for token_id, _, logprob in entry.top}
        top[token] = entry.logprob
        table["tokens"].append(token)
        table["text_offset"].append(offset)
        table["token_logprobs"].append(entry.logprob)
        table["top_logprobs"].append(top)
        offset += len(token)
    return table


def chat(
    answer: CreateCompletionResponse, calls: CallFormat | None = None
) -> CreateChatCompletionResponse:
    """A completion as the assistant's message. calls: how those are written of which it is."""
    [choice] = answer["choices"]
    message: ChatCompletionResponseMessage = {"role": "assistant", "content": choice["text"]}
    finish: str | None = choice["finish_reason"]
    if calls is not None:
        found = read(calls, choice["text"], salt=answer["id"])
        message["content"] = found.text or None
        if found.calls:
            message["tool_calls"] = [as_message(call) for call in found.calls]
            finish = "tool_calls" if finish == "stop" else finish
    return {
        "id": "chat" + answer["id"],
        "object": "chat.completion",
        "created": answer["created"],
        "model": answer["model"],
        "choices": [
            {
                "index": 0,
                "message": message,
                "logprobs": _chat_logprobs(choice["logprobs"]),
                "finish_reason": finish,
            }
        ],
        "usage": answer["usage"],
    }


def chat_chunks(
    chunks: Iterable[CreateCompletionResponse], calls: CallFormat | None = None
) -> Iterator[CreateChatCompletionStreamResponse]:
    """A completion's chunks as a chat's: the role, then the content, then the reason. Calls come
    whole."""

    def made(
        chunk: CreateCompletionResponse,
        delta: ChatCompletionStreamResponseDelta,
        logprobs: ChatCompletionLogprobs | None,
        finish: str | None,
    ) -> CreateChatCompletionStreamResponse:
        return {
            "id": "chat" + chunk["id"],
            "model": chunk["model"],
            "created": chunk["created"],
            "object": "chat.completion.chunk",
            "choices": [
                {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
            ],
        }

    reader: CallReader | None = None
    n_calls = 0
    for number, chunk in enumerate(chunks):
        if number == 0:
            yield made(chunk, {"role": "assistant"}, None, None)
        [choice] = chunk["choices"]
        finish: str | None = choice["finish_reason"]
        if calls is not None:
            if reader is None:
                reader = CallReader(calls, salt=chunk["id"])
            found = reader.push(choice["text"])
            text = found.text + (reader.flush().text if finish is not None else "")
            for call in found.calls:
                given: ChatCompletionStreamResponseDelta = {
                    "tool_calls": [{"index": n_calls, **as_message(call)}]
                }
                yield made(chunk, given, None, None)
                n_calls += 1
            if text:
                yield made(chunk, {"content": text}, None, None)
            if finish is not None:
                yield made(
                    chunk, {}, None, "tool_calls" if n_calls and finish == "stop" else finish
                )
            continue
        delta: ChatCompletionStreamResponseDelta = (
            {"content": choice["text"]} if finish is None else {}
        )
        yield made(chunk, delta, _chat_logprobs(choice["logprobs"]), finish)


def _chat_logprobs(table: CompletionLogprobs | None) -> ChatCompletionLogprobs | None:
    if table is None:
        return None
    rows = zip(table["tokens"], table["token_logprobs"], table["top_logprobs"], strict=True)
    return {
        "content": [
            {
                "token": token,
                "bytes": None,
                "logprob": logprob,
                "top_logprobs": [
                    {"token": other, "logprob": score, "bytes": None}
                    for other, score in (top or {}).items()
                ],
            }
            for token, logprob, top in rows
        ],
        "refusal": None,
    }
