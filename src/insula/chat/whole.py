"""Conversations that an engine is given as messages, because the template is its own affair.

Owns when that is (a server; images or sound), what cannot be had then, and the request. Everything
else goes through `chat.prompt`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from insula.chat import media
from insula.engine.backends import require
from insula.engine.request import Conversation, Handle, Request, TextEngine
from insula.errors import ConfigError, UnsupportedError
from insula.types import SamplingParams


def wanted(engine: TextEngine, messages: Any) -> bool:
    """Whether the engine is given the messages as they are. Raises UnsupportedError for parts
    that it cannot take."""
    needed = media.needs(messages)
    for capability in needed:
        require(engine.name, capability)
    if needed and "media" not in engine.takes:
        raise UnsupportedError(
            f"the model was loaded without its projector, and cannot take {' or '.join(needed)} "
            "input; give its file as mmproj=",
            backend=engine.name,
        )
    return bool(needed) or "conversation" in engine.takes


def submit(
    engine: TextEngine,
    messages: Any,
    params: SamplingParams,
    *,
    template: object = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    arguments: Mapping[str, Any] | None = None,
    overflow: str,
    salt: str,
    notes: tuple[str, ...],
) -> Handle:
    """Queue the answer.

    Raises ConfigError (messages), UnsupportedError (what would need the template here).
    """
    for what, given in (
        ("a template", template is not None),
        (f"overflow={overflow!r}", overflow != "error"),
    ):
        if given:
            raise UnsupportedError(
                f"the {engine.name} backend cannot take {what} here: the conversation becomes "
                "tokens where the model runs",
                backend=engine.name,
            )
    conversation = Conversation(
        messages=tuple(media.media_messages(messages, remote=engine.name == "remote")),
        tools=None if tools is None else tuple(tools),
        arguments={} if arguments is None else dict(arguments),
    )
    try:
        json.dumps([conversation.messages, conversation.tools, conversation.arguments])
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"messages: they hold what JSON cannot ({error}); allowed: text, numbers, lists and "
            "mappings of text"
        ) from None
    request = Request(
        conversation=conversation, params=params, salt=salt, continues=False, notes=notes
    )
    return engine.submit(request)
