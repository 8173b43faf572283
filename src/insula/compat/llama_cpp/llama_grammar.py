"""`LlamaGrammar`: what an answer must look like, as llama-cpp-python's programs give it.

A grammar is held while the engine generates. Where a program chooses tokens itself (`sample`,
logits processors, stopping criteria) it is refused: one taken and not followed would be found out
in production.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from insula.compat.llama_cpp.errors import NotHereError
from insula.errors import ConfigError
from insula.given import wanted_form
from insula.security.small_file import NotRegularError, TooLongError, read_small
from insula.types import Constraint

#: Bytes of a file of GBNF, at most.
MAX_FILE = 1 << 20


class LlamaGrammar:
    """A GBNF grammar, or a JSON schema. It is compiled when it is first used."""

    def __init__(self, *args: Any, _grammar: str | None = None, **kwargs: Any) -> None:
        grammar = args[0] if args else _grammar
        if not isinstance(grammar, str):
            raise ConfigError(
                f"LlamaGrammar: found {type(grammar).__name__}; allowed is GBNF, a str"
            )
        self.constraint = Constraint(kind="gbnf", text=grammar)

    @classmethod
    def from_string(cls, grammar: str, verbose: bool = True) -> LlamaGrammar:
        """From GBNF."""
        return cls(grammar)

    @classmethod
    def from_file(cls, file: str | os.PathLike[str], verbose: bool = True) -> LlamaGrammar:
        """From a file of GBNF. Raises OSError, ConfigError (a ValueError)."""
        try:
            return cls(read_small(Path(file), MAX_FILE).decode())
        except (NotRegularError, TooLongError, UnicodeDecodeError):
            raise ConfigError(
                f"{file}: allowed is an ordinary file of GBNF, UTF-8, of at most {MAX_FILE} bytes"
            ) from None

    @classmethod
    def from_json_schema(cls, json_schema: str, verbose: bool = True) -> LlamaGrammar:
        """From a JSON schema, as text."""
        made = cls.of(Constraint(kind="json_schema", text=json_schema))
        assert made is not None
        return made

    @classmethod
    def of(cls, constraint: Constraint | None) -> LlamaGrammar | None:
        """What Insula asks for, as a grammar."""
        if constraint is None:
            return None
        made = cls("")
        made.constraint = constraint
        return made


def constraint_of(grammar: object) -> Constraint | None:
    """What a completion's `grammar` asks for. Raises ConfigError."""
    if grammar is None:
        return None
    if not isinstance(grammar, LlamaGrammar):
        raise ConfigError(f"grammar: found {type(grammar).__name__}; allowed is a LlamaGrammar")
    return grammar.constraint


def format_of(response_format: Any) -> Constraint | None:
    """What `response_format` asks for: of llama-cpp-python {"type": "json_object", "schema": …},
    or as OpenAI writes it. Raises ConfigError."""
    if isinstance(response_format, Mapping) and response_format.get("type") == "json_object":
        schema = response_format.get("schema")
        if schema is not None:
            inner = {"type": "json_schema", "json_schema": {"schema": schema}}
            return wanted_form(None, inner, None)
    return wanted_form(None, response_format, None)


def refuse(what: str) -> NoReturn:
    """Raise the error for a grammar where the engine does not choose the tokens."""
    raise NotHereError(
        f"{what}: a grammar is held where the engine itself generates; leave out "
        "logits_processor, stopping_criteria and logits_all, or the grammar"
    )
