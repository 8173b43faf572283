"""What callers write: one text or a list of them, and options by transformers' names.

Anything else is a ConfigError that names what was found and what is allowed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from insula.errors import ConfigError


def listed(inputs: Any, what: str = "inputs") -> tuple[list[str], bool]:
    """The texts as a list, and whether it was one text. None of them may be empty."""
    if isinstance(inputs, str):
        return [text(inputs, what)], True
    return [text(each, f"{what}[{i}]") for i, each in enumerate(sequence(inputs, what))], False


def text(value: Any, what: str) -> str:
    """One text that is not empty."""
    if not isinstance(value, str):
        raise ConfigError(f"{what}: found {type(value).__name__}; allowed is a text")
    if not value.strip():
        raise ConfigError(f"{what} is empty; there is nothing to work on")
    return value


def sequence(inputs: Any, what: str) -> list[Any]:
    """A list that is not empty."""
    no_list = isinstance(inputs, str | bytes | bytearray | memoryview | Mapping)
    if no_list or not isinstance(inputs, Sequence):
        raise ConfigError(
            f"{what}: found {type(inputs).__name__}; allowed is a text or a list of texts"
        )
    if not inputs:
        raise ConfigError(f"{what}: found an empty list; one text at least is needed")
    return list(inputs)


def is_chat(inputs: Any) -> bool:
    """A list of messages."""
    return isinstance(inputs, list | tuple) and bool(inputs) and isinstance(inputs[0], Mapping)


def whole(value: Any, name: str) -> int:
    """A whole number from 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name}: found {value!r}; allowed is a whole number from 1")
    return value


def labels(candidates: Any, name: str) -> list[str]:
    """Different labels, as a list or as one text with commas, as transformers reads them."""
    if isinstance(candidates, str):
        candidates = [label.strip() for label in candidates.split(",") if label.strip()]
    found, _ = listed(sequence(candidates, name), name)
    twice = [label for i, label in enumerate(found) if label in found[:i]]
    if twice:
        raise ConfigError(f"{name}: {twice[0]!r} is there twice; each label once")
    return found


def choice(value: Any, name: str, allowed: Sequence[Any]) -> Any:
    """One of those allowed."""
    if value not in allowed:
        raise ConfigError(
            f"{name}: found {value!r}; allowed: {', '.join(str(each) for each in allowed)}"
        )
    return value
