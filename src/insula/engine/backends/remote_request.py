"""A request as OpenAI's routes read it.

Owns the translation of `SamplingParams`. OpenAI's own options are always sent. Those that many
servers add are sent where they differ from our defaults, and the report says so, since a server
may pass over what it does not know; what is left at our default is then the server's own default.
What no server takes is refused by name.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from insula.engine.request import Request
from insula.errors import ConfigError, UnsupportedError
from insula.types import SamplingParams

NAME = "remote"

#: Sent under our names, which llama.cpp's server and Insula's have too (and vLLM some of them).
EXTENSIONS = ("top_k", "min_p", "typical_p", "repeat_penalty", "repeat_last_n", "ignore_eos")
#: OpenAI's own.
STANDARD = (
    *("temperature", "top_p", "presence_penalty", "frequency_penalty"),
    *("max_tokens", "stop", "seed", "logprobs", "logit_bias"),
)
_DEFAULTS = SamplingParams()


def body(request: Request, model: str, seed: int) -> tuple[str, dict[str, Any]]:
    """(route, JSON). Raises UnsupportedError, ConfigError."""
    params = request.params
    sent: dict[str, Any] = {
        "model": model,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": params.temperature,
        "top_p": params.top_p,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "seed": seed,
        **{name: getattr(params, name) for name in extensions(params)},
    }
    if params.max_tokens is not None:
        sent["max_tokens"] = params.max_tokens
    if params.stop:
        sent["stop"] = list(params.stop)
    if params.logit_bias:
        sent["logit_bias"] = {str(i): _bias(b) for i, b in params.logit_bias.items()}
    if request.conversation is not None:
        if params.logprobs is not None:
            sent |= {"logprobs": True, "top_logprobs": params.logprobs}
        if request.conversation.arguments:
            sent["chat_template_kwargs"] = dict(request.conversation.arguments)
        sent["messages"] = [dict(message) for message in request.conversation.messages]
        return "chat/completions", sent
    if params.logprobs is not None:
        sent["logprobs"] = params.logprobs
    sent["prompt"] = list(request.ids) if request.text is None else request.text
    return "completions", sent


def extensions(params: SamplingParams) -> list[str]:
    """Names of the options beyond OpenAI's that are sent. Raises UnsupportedError for others."""
    changed = [
        field.name
        for field in dataclasses.fields(params)
        if getattr(params, field.name) != getattr(_DEFAULTS, field.name)
    ]
    for name in changed:
        if name not in STANDARD and name not in EXTENSIONS:
            raise UnsupportedError(
                f"the {NAME} backend cannot take {name}={getattr(params, name)!r}; it takes "
                + ", ".join((*STANDARD, *EXTENSIONS)),
                backend=NAME,
            )
    return [name for name in EXTENSIONS if name in changed]


def notes(request: Request) -> tuple[str, ...]:
    """What the report must say of the translation."""
    sent = extensions(request.params)
    lines = []
    if sent:
        lines.append(
            f"sent to the server, which may pass over what it does not know: {', '.join(sent)}"
        )
    own = [name for name in ("top_k", "min_p") if name not in sent]
    if request.params.temperature > 0 and own:
        lines.append(f"the server's own default was used for {' and '.join(own)}")
    if request.conversation is not None and request.conversation.arguments:
        lines.append("template_arguments were sent as chat_template_kwargs")
    return tuple(lines)


def _bias(value: float) -> float:
    if math.isnan(value):
        raise ConfigError("logit_bias: found nan; a number is needed")
    return max(-100.0, min(100.0, value))  # OpenAI's range; -100 never, 100 always
