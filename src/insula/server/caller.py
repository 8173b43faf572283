"""Who asks, as far as an answer depends on it.

Whoever checks keys puts a Caller into the ASGI scope under SCOPE_KEY; where nobody does, everybody
is ANYONE. Owns no decision about routes: that is routes.py's table and the check of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SCOPE_KEY = "insula.caller"


@dataclass(frozen=True, kw_only=True)
class Caller:
    """tenant: whose prefixes may be shared with this request, and whose turn it is.

    models: the only ones that this caller may use, None for all.
    """

    tenant: str = ""
    models: frozenset[str] | None = None

    def may_use(self, model: str) -> bool:
        return self.models is None or model in self.models


ANYONE = Caller()


def caller(scope: Mapping[str, Any]) -> Caller:
    """Of a request's ASGI scope."""
    found = scope.get(SCOPE_KEY, ANYONE)
    assert isinstance(found, Caller)
    return found
