"""What callers write, as plain values: prompts, ids, texts, adapters.

Anything else is a ConfigError that names what was found and what is allowed.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from insula.errors import ConfigError

#: One prompt: text, or token ids.
Prompt = str | Sequence[int]

#: Adapters by name, or paths whose names they take.
Adapters = Mapping[str, str | os.PathLike[str]] | Sequence[str | os.PathLike[str]]


def prompts(
    prompt: Any, encode: Callable[[str], tuple[int, ...] | str]
) -> tuple[list[tuple[int, ...] | str], bool]:
    """The prompts as ids, or as text where the engine takes that; and whether it is one and not
    a list."""
    if isinstance(prompt, str):
        return [encode(prompt)], True
    array = hasattr(prompt, "__array__") and getattr(prompt, "ndim", 1) > 0
    undecoded = isinstance(prompt, (bytes, bytearray, memoryview))
    if undecoded or not (isinstance(prompt, Sequence) or array):
        raise ConfigError(
            f"prompt: found {type(prompt).__name__}; allowed: text, ids, or a list of them"
        )
    items = list(prompt)
    if not items:
        raise ConfigError("the prompt is empty; at least one token is needed")
    if all(isinstance(item, str) for item in items):
        return [encode(item) for item in items], False
    if all(hasattr(item, "__index__") for item in items):
        return [plain_ids(items)], True
    return [plain_ids(item) for item in items], False


def named_adapters(adapters: Adapters | None) -> dict[str, Path]:
    """Paths by name. Raises ConfigError."""
    if adapters is None:
        return {}
    if not isinstance(adapters, Mapping):
        if isinstance(adapters, str | os.PathLike):
            adapters = [adapters]
        paths = [Path(path) for path in adapters]
        adapters = {path.stem if path.is_file() else path.name: path for path in paths}
        if len(adapters) != len(paths):
            raise ConfigError("adapters: two have the same name; give names: {name: path, ...}")
    return {str(name): Path(path) for name, path in adapters.items()}


def listed_texts(texts: Any, *, one: bool = True) -> list[str]:
    """The texts as a list; `one` may stand alone."""
    if one and isinstance(texts, str):
        return [texts]
    if isinstance(texts, (str, bytes, bytearray, memoryview)) or not isinstance(texts, Sequence):
        found = type(texts).__name__
        raise ConfigError(f"texts: found {found}; allowed is a list of str" + " or one" * one)
    return list(texts)


def plain_ids(ids: Any) -> tuple[int, ...]:
    """Token ids as plain integers; True and 1.0 are not ids."""
    try:
        # Bytes are text that nobody has decoded, not ids.
        if isinstance(ids, (bytes, bytearray, memoryview)):
            raise TypeError
        ids = tuple(ids)  # once: it may be an iterator
        if any(isinstance(i, bool) for i in ids):
            raise TypeError
        return tuple(operator.index(i) for i in ids)
    except TypeError:
        raise ConfigError("token ids: allowed is a sequence of whole numbers") from None
