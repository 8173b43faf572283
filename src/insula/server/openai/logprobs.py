"""Log probabilities in OpenAI's two shapes: a list of tokens for chats, columns for completions.

Numbers are the engine's, unrounded. The chosen token is always among the alternatives of a
completion's column, once, with the same number.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from insula.types import TokenLogprob


def shown(token: bytes) -> str:
    """A token as text; half a character as `bytes:\\xe2`, as OpenAI does, so that two differ."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def chat(entries: Iterable[TokenLogprob], top: int) -> dict[str, Any]:
    """A chat's: each token with its bytes and `top` alternatives."""
    return {
        "content": [
            {
                **_entry(entry.token, entry.logprob),
                "top_logprobs": [_entry(token, p) for _, token, p in entry.top[:top]],
            }
            for entry in entries
        ],
        "refusal": None,
    }


def _entry(token: bytes, logprob: float) -> dict[str, Any]:
    return {
        "token": token.decode(errors="replace"),
        "logprob": logprob,
        "bytes": list(token),
    }


def columns(entries: Sequence[TokenLogprob | None], first: bytes, offset: int) -> dict[str, Any]:
    """A completion's: columns of tokens. None is the prompt's first token, which follows nothing;
    `first` are its bytes. offset: where in the text they begin, in characters."""
    table: dict[str, list[Any]] = {
        "tokens": [],
        "token_logprobs": [],
        "top_logprobs": [],
        "text_offset": [],
    }
    for entry in entries:
        token = shown(first if entry is None else entry.token)
        table["tokens"].append(token)
        table["token_logprobs"].append(None if entry is None else entry.logprob)
        table["top_logprobs"].append(None if entry is None else _alternatives(entry, token))
        table["text_offset"].append(offset)
        offset += len(token)
    return table


def _alternatives(entry: TokenLogprob, token: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for _, other, logprob in entry.top:
        found.setdefault(shown(other), logprob)  # the likelier of two that look alike
    if token not in found or found[token] < entry.logprob:
        found[token] = entry.logprob
    return found
