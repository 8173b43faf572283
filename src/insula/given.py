"""What callers write, as plain values: prompts, ids, texts, adapters, forms of an answer.

Anything else is a ConfigError that names what was found and what is allowed.
"""

from __future__ import annotations

import json
import operator
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from insula.errors import ConfigError, ConstraintError
from insula.types import Constraint

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


def wanted_form(
    constraint: Constraint | None,
    response_format: Mapping[str, Any] | None,
    grammar: str | None,
) -> Constraint | None:
    """The one constraint that was given, in whichever way; None: none.

    response_format: as OpenAI writes it. grammar: GBNF (its start is `root`) or Lark (`start`).
    Raises ConfigError, ConstraintError.
    """
    given = {"constraint": constraint, "response_format": response_format, "grammar": grammar}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise ConfigError(f"{' and '.join(names)} were given; an answer has one form: give one")
    if grammar is not None:
        return _grammar(grammar)
    return constraint if response_format is None else _response_format(response_format)


def _grammar(text: Any) -> Constraint:
    if not isinstance(text, str):
        raise ConfigError(f"grammar: found {type(text).__name__}; allowed is a str, GBNF or Lark")
    if re.search(r"^[ \t]*root[ \t]*::=", text, re.MULTILINE):
        return Constraint(kind="gbnf", text=text)
    if re.search(r"^[ \t]*start[ \t]*(\[[^\]\n]*\])?[ \t]*:(?!:)", text, re.MULTILINE):
        return Constraint(kind="lark", text=text)
    raise ConstraintError(
        "grammar: no rule to start from was found; GBNF has `root ::= ...`, Lark has `start: ...`"
    )


_FORMATS = (
    'allowed: {"type": "text"}, {"type": "json_object"}, or {"type": "json_schema", '
    '"json_schema": {"name": ..., "schema": {...}}}'
)


def _response_format(value: Any) -> Constraint | None:
    kind = value.get("type") if isinstance(value, Mapping) else None
    found = f"type {kind!r:.40}" if isinstance(value, Mapping) else type(value).__name__
    if kind not in ("text", "json_object", "json_schema"):
        raise ConfigError(f"response_format: found {found}; {_FORMATS}")
    known = {"type", "json_schema"} if kind == "json_schema" else {"type"}
    if unknown := sorted(map(str, set(value) - known)):
        raise ConfigError(f"response_format: found {unknown[0]!r:.40} beside type; {_FORMATS}")
    if kind == "text":
        return None
    if kind == "json_object":
        return Constraint(kind="json_object")
    inner = value.get("json_schema")
    if not isinstance(inner, Mapping) or "schema" not in inner:
        raise ConfigError(f"response_format: json_schema has no schema; {_FORMATS}")
    if unknown := sorted(map(str, set(inner) - {"name", "schema", "strict", "description"})):
        raise ConfigError(
            f"response_format: found json_schema.{unknown[0]:.40}; allowed: name, description, "
            "schema, strict (whatever it says, the schema is held to)"
        )
    try:
        return Constraint(kind="json_schema", text=json.dumps(inner["schema"]))
    except RecursionError:
        raise ConstraintError("response_format: the schema is nested too deeply") from None
    except (TypeError, ValueError) as error:
        raise ConfigError(f"response_format: the schema is not JSON: {error}") from None
