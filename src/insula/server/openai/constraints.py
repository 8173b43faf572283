"""What an answer must be: tools, response_format, grammar; and calls as OpenAI writes them.

Whether a schema or a grammar can be followed is the engine's to say (engine/constraint.py); its
errors name the parameter. Here is only what asks for nothing, in every family.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from insula.given import wanted_form
from insula.types import ToolCall


def constraints(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `LLM.chat_stream` for it. Raises ConfigError, ConstraintError."""
    options = {name: value for name, value in asked.items() if value not in (None, "", [])}
    wanted_form(None, options.get("response_format"), options.get("grammar"))
    if "tools" not in options:
        options.pop("parallel_tool_calls", None)
    return options


def calls(found: Sequence[ToolCall], first: int | None = None) -> list[dict[str, Any]]:
    """Calls of tools. first: the index of the first of them in a streamed answer."""
    return [
        {
            **({} if first is None else {"index": first + at}),
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for at, call in enumerate(found)
    ]
