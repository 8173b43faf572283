"""Anthropic's conversations and tools, in the words that templates and the engine know (OpenAI's).

Text, calls of tools and their results are taken; thoughts of earlier turns are left out, as
templates do. Anything else is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from insula.server.errors import RefusalError, unsupported

_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def conversation(system: Any, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages. Raises RefusalError."""
    found: list[dict[str, Any]] = []
    if system:
        found.append({"role": "system", "content": _text("system", system)})
    for at, message in enumerate(messages):
        where = f"messages[{at}]"
        role, content = message.get("role"), message.get("content")
        if role not in ("user", "assistant"):
            raise RefusalError(400, f"{where}: the role is user or assistant", param="messages")
        if isinstance(content, str):
            found.append({"role": role, "content": content})
        elif role == "assistant":
            found.append(_said(where, content))
        else:
            found += _results(where, content)
            parts = _parts(where, content)
            rest = [part for part in parts if part.get("type") != "tool_result"]
            if rest or not parts:
                found.append({"role": "user", "content": _text(where, rest)})
    if found[-1]["role"] == "assistant":
        raise unsupported("messages", "an answer that is begun (a last turn of the assistant's)")
    return found


def tools(asked: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """Tools as OpenAI writes them. Raises RefusalError for Anthropic's own, which run there."""
    found = []
    for at, tool in enumerate(asked or ()):
        if tool.get("type") not in (None, "custom"):
            raise unsupported("tools", f"tools[{at}] is one that Anthropic runs")
        function = {
            "name": tool.get("name"),
            "description": tool.get("description", ""),
            "parameters": tool.get("input_schema", {}),
        }
        found.append({"type": "function", "function": function})
    return found


def tool_options(
    asked: Sequence[Mapping[str, Any]] | None, choice: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The options of `LLM.chat_stream` for them. Raises RefusalError."""
    options: dict[str, Any] = {}
    if asked:
        options["tools"] = tools(asked)
    if choice is None:
        return options
    kind = choice.get("type")
    if kind == "tool":
        named = {"name": choice.get("name")}
        options["tool_choice"] = {"type": "function", "function": named}
    elif kind in _CHOICES:
        options["tool_choice"] = _CHOICES[kind]
    else:
        message = "tool_choice: allowed are auto, any, none and tool"
        raise RefusalError(400, message, param="tool_choice")
    if asked and choice.get("disable_parallel_tool_use"):
        options["parallel_tool_calls"] = False
    return options


def _said(where: str, content: Any) -> dict[str, Any]:
    """An assistant's turn, with its calls."""
    parts = _parts(where, content)
    calls = [
        {
            "id": str(part.get("id", "")),
            "type": "function",
            "function": {
                "name": str(part.get("name", "")),
                "arguments": json.dumps(part.get("input", {}), ensure_ascii=False),
            },
        }
        for part in parts
        if part.get("type") == "tool_use"
    ]
    text = _text(where, [part for part in parts if part.get("type") != "tool_use"])
    if not calls:
        return {"role": "assistant", "content": text}
    return {"role": "assistant", "content": text or None, "tool_calls": calls}


def _results(where: str, content: Any) -> list[dict[str, Any]]:
    """What tools returned, each as a message of its own."""
    return [
        {
            "role": "tool",
            "tool_call_id": str(part.get("tool_use_id", "")),
            "content": _text(where, part.get("content") or ""),
        }
        for part in _parts(where, content)
        if part.get("type") == "tool_result"
    ]


def _parts(where: str, content: Any) -> list[dict[str, Any]]:
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise RefusalError(400, f"{where}: content is a text or a list of parts", param="messages")
    return content


def _text(where: str, content: Any) -> str:
    if isinstance(content, str):
        return content
    pieces = []
    for part in _parts(where, content):
        kind = part.get("type")
        if kind in ("thinking", "redacted_thinking"):
            continue
        if kind != "text" or not isinstance(part.get("text"), str):
            raise unsupported("messages", f"{where} has a part of type {str(kind)[:40]!r}")
        pieces.append(part["text"])
    return "\n".join(pieces)
