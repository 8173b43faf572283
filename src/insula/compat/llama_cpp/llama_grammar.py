"""`LlamaGrammar`, which is refused: the engine has no constrained decoding yet.

A grammar that were taken and not followed would be found out in production.
"""

from __future__ import annotations

import os
from typing import Any, NoReturn

from insula.compat.llama_cpp.errors import NotHereError

WHY = (
    "Insula's engines have no constrained decoding yet; leave the grammar out and check the "
    "answer, or restrict tokens by logit_bias or a logits_processor"
)


class LlamaGrammar:
    """A GBNF grammar. Making one raises NotHereError (a ValueError)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        refuse("LlamaGrammar")

    @classmethod
    def from_string(cls, grammar: str, verbose: bool = True) -> LlamaGrammar:
        """From GBNF."""
        return cls(grammar)

    @classmethod
    def from_file(cls, file: str | os.PathLike[str], verbose: bool = True) -> LlamaGrammar:
        """From a file of GBNF."""
        return cls(file)

    @classmethod
    def from_json_schema(cls, json_schema: str, verbose: bool = True) -> LlamaGrammar:
        """From a JSON schema."""
        return cls(json_schema)


def refuse(what: str) -> NoReturn:
    """Raise the error for something that needs a grammar."""
    raise NotHereError(f"{what}: {WHY}")
