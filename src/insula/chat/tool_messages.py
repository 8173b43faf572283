"""How tools, calls and results reach the model: by its template, or in words.

Owns the messages that a template is given. A template that knows calls gets them as it expects,
arguments as a mapping; one that does not gets them as text, as Hermes writes them, results as the
user's words, and the tools as a description at the end of what the system says (or, where the
template has no place for a system, at the head of the first user's message).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from insula.chat.tools import Tool
from insula.errors import ConfigError
from insula.types import Message

_DESCRIPTION = (
    "You can call these tools. Each is described by one line of JSON, its parameters by a JSON "
    "schema:\n<tools>\n{tools}\n</tools>\n"
    "To call a tool, write its name and arguments like this, and nothing after it:\n"
    '<tool_call>\n{{"name": "tool name", "arguments": {{"parameter": "value"}}}}\n</tool_call>\n'
    "The user then tells you its result."
)


_CALL = '{"id": ..., "type": "function", "function": {"name": ..., "arguments": ...}}'


def knows_calls(template: str) -> bool:
    """Whether a template's source has a place for calls and their results."""
    return re.search(r"\btool_calls\b", template) is not None


def check_calls(where: str, message: Message) -> None:
    """Raises ConfigError unless the calls and ids of a message are what OpenAI writes."""
    if not isinstance(message.get("tool_call_id"), str | None):
        raise ConfigError(f"{where}: tool_call_id is no text; allowed: the id of a call")
    calls = message.get("tool_calls")
    if calls is None:
        return
    if not isinstance(calls, list | tuple):
        raise ConfigError(f"{where}: tool_calls is {type(calls).__name__}; allowed: a list")
    for at, call in enumerate(calls):
        function = call.get("function") if isinstance(call, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        arguments = function.get("arguments") if isinstance(function, Mapping) else None
        fine = isinstance(name, str) and isinstance(arguments, str | Mapping | None)
        if not fine or not isinstance(call.get("id"), str | None):
            raise ConfigError(
                f"{where}: tool_calls[{at}] is {str(call)[:80]!r}; allowed: {_CALL}, its "
                "arguments as JSON text or a mapping"
            )
        try:
            json.dumps(arguments)
        except (TypeError, ValueError, RecursionError):
            raise ConfigError(f"{where}: the arguments of tool_calls[{at}] are not JSON") from None


def described(
    messages: Sequence[Message], tools: Sequence[Tool], *, in_system: bool
) -> list[Message]:
    """The messages with a description of the tools, in what the system says or the first user."""
    lines = "\n".join(json.dumps(_function(tool), ensure_ascii=False) for tool in tools)
    text = _DESCRIPTION.format(tools=lines)
    out = list(messages)
    if not in_system:
        at = next((i for i, message in enumerate(out) if message["role"] == "user"), None)
        if at is None:
            return [{"role": "user", "content": text}, *out]
        out[at] = {**out[at], "content": f"{text}\n\n{out[at]['content']}"}
        return out
    if out and out[0]["role"] in ("system", "developer"):
        out[0] = {**out[0], "content": f"{out[0]['content']}\n\n{text}"}
        return out
    return [{"role": "system", "content": text}, *out]


def as_mappings(messages: Sequence[Message]) -> list[Message]:
    """Calls whose arguments are JSON text, as OpenAI writes them, with mappings in their place:
    what most templates expect."""
    return [
        {
            **message,
            "tool_calls": [_with_mapping(call) for call in message["tool_calls"]],
        }
        if isinstance(message.get("tool_calls"), list | tuple)
        else message
        for message in messages
    ]


def with_text(messages: Sequence[Message]) -> list[Message]:
    """The messages, none without a text."""
    return [
        {**message, "content": ""} if message.get("content") is None else message
        for message in messages
    ]


def as_text(messages: Sequence[Message]) -> list[Message]:
    """Calls and results in words, for a template without a place for them."""
    out: list[Message] = []
    names: dict[Any, str] = {}
    after_result = False
    for message in messages:
        calls = message.get("tool_calls")
        is_result = message["role"] == "tool"
        if is_result:
            name = names.get(message.get("tool_call_id"), "the tool")
            content = f"The result of {name}:\n{message['content']}"
            if after_result:  # results of one turn come together
                out[-1] = {**out[-1], "content": f"{out[-1]['content']}\n\n{content}"}
            else:
                out.append({"role": "user", "content": content})
        elif isinstance(calls, list | tuple) and calls:
            said = message.get("content") or ""
            written = "\n".join(_written(call) for call in calls)
            names.update((call.get("id"), call["function"]["name"]) for call in calls)
            kept = {k: v for k, v in message.items() if k != "tool_calls"}
            out.append({**kept, "content": f"{said}\n{written}" if said else written})
        else:
            out.append(message)
        after_result = is_result
    return out


def _function(tool: Tool) -> Any:
    return tool.raw.get("function", tool.raw)


def _with_mapping(call: Mapping[str, Any]) -> Mapping[str, Any]:
    function = call["function"]
    if not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        return call
    if not isinstance(arguments, Mapping):
        return call
    return {**call, "function": {**function, "arguments": arguments}}


def _written(call: Mapping[str, Any]) -> str:
    function = call["function"]
    name = json.dumps(function["name"], ensure_ascii=False)
    arguments = function.get("arguments") or {}
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return f'<tool_call>\n{{"name": {name}, "arguments": {arguments}}}\n</tool_call>'
