"""What one request used, told by its handler and settled when its answer ends.

Whoever guards the door puts a Usage into the ASGI scope; a handler adds to it what the engine
reports. Without a guard it goes nowhere. Only a model's resolved name may be told, never a text of
the client's: this ends in the audit log.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SCOPE_KEY = "insula.usage"


@dataclass(kw_only=True)
class Usage:
    """Sums over the request's samples. joules: None where nothing measures them."""

    model: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    joules: float | None = None

    def add(
        self, model: str, *, prompt_tokens: int, completion_tokens: int = 0, cached_tokens: int = 0
    ) -> None:
        """One more answer, or part of one. What a cut-off answer used counts too."""
        self.model = model
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens
        self.cached_tokens += cached_tokens

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


def usage(scope: Mapping[str, Any]) -> Usage:
    """Of a request's ASGI scope."""
    found = scope.get(SCOPE_KEY)
    return found if isinstance(found, Usage) else Usage()
