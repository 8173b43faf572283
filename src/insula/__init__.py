"""Insula: language models on hardware you own.

`from insula import LLM` is the front door. Nothing heavy is imported before it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from insula.async_llm import AsyncLLM as AsyncLLM
    from insula.chat.session import ChatSession as ChatSession
    from insula.errors import InsulaError as InsulaError
    from insula.llm import LLM as LLM
    from insula.types import Chunk as Chunk
    from insula.types import Completion as Completion
    from insula.types import Constraint as Constraint
    from insula.types import Embeddings as Embeddings
    from insula.types import SamplingParams as SamplingParams
    from insula.types import ToolCall as ToolCall

__version__ = "0.1.0"

_HOMES = {
    "LLM": "insula.llm",
    "AsyncLLM": "insula.async_llm",
    "ChatSession": "insula.chat.session",
    "InsulaError": "insula.errors",
    "SamplingParams": "insula.types",
    "Completion": "insula.types",
    "Constraint": "insula.types",
    "ToolCall": "insula.types",
    "Embeddings": "insula.types",
    "Chunk": "insula.types",
}

__all__ = [
    "LLM",
    "AsyncLLM",
    "ChatSession",
    "Chunk",
    "Completion",
    "Constraint",
    "Embeddings",
    "InsulaError",
    "SamplingParams",
    "ToolCall",
]


def __getattr__(name: str) -> Any:
    """Import a public name's module on first use (PEP 562)."""
    import importlib

    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'insula' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
