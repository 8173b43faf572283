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
    "The result then comes between <tool_response> and </tool_response>."
)


def knows_calls(template: str) -> bool:
    """Whether a template's source has a place for calls and their results."""
    return re.search(r"\btool_calls\b", template) is not None


def described(
    messages: Sequence[Message], tools: Sequence[Tool], *, in_system: bool = True
) -> list[Message]:
    """The messages with a description of the tools."""
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
    what templates expect."""
    return [
        {**message, "tool_calls": [_with_mapping(call) for call in message["tool_calls"]]}
        if isinstance(message.get("tool_calls"), list | tuple)
        else message
        for message in messages
    ]


def as_text(messages: Sequence[Message]) -> list[Message]:
    """Calls and results in words, for a template without a place for them."""
    out: list[Message] = []
    after_result = False
    for message in messages:
        calls = message.get("tool_calls")
        is_result = message["role"] == "tool"
        if is_result:
            content = f"<tool_response>\n{message['content']}\n</tool_response>"
            if after_result:  # results of one turn come together
                out[-1] = {**out[-1], "content": f"{out[-1]['content']}\n{content}"}
            else:
                out.append({"role": "user", "content": content})
        elif isinstance(calls, list | tuple) and calls:
            said = message.get("content") or ""
            written = "\n".join(_written(call) for call in calls)
            kept = {k: v for k, v in message.items() if k != "tool_calls"}
            out.append({**kept, "content": f"{said}\n{written}" if said else written})
        else:
            out.append(message)
        after_result = is_result
    return out


def _function(tool: Tool) -> Any:
    return tool.raw.get("function", tool.raw)


def _with_mapping(call: Any) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        return call
    if not isinstance(arguments, Mapping):
        return call
    return {**call, "function": {**function, "arguments": arguments}}


def _written(call: Any) -> str:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        raise ConfigError(
            'messages: a call of a tool is no mapping; allowed: {"id": ..., "type": "function", '
            '"function": {"name": ..., "arguments": ...}}'
        )
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        try:
            arguments = json.dumps({} if arguments is None else arguments, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(
                f"messages: the arguments of a call of a tool are not JSON: {error}"
            ) from None
    name = json.dumps(str(function.get("name", "")), ensure_ascii=False)
    return f'<tool_call>\n{{"name": {name}, "arguments": {arguments}}}\n</tool_call>'
