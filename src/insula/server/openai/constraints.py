"""What an answer must be: tools, response_format, grammar. The one place that says what of it there
is, for every family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from insula.server.errors import unsupported

#: Of a request that asks for nothing of the kind.
_FREE: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "grammar": ("",),
}


def constraints(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `LLM.chat_stream` for it. Raises RefusalError that names the parameter."""
    for name, free in _FREE.items():
        value = asked.get(name)
        if value is not None and value not in free:
            raise unsupported(name)
    return {}
