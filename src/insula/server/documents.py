"""JSON as it goes out: UTF-8, compact, and never a failure of its own."""

from __future__ import annotations

import json
from typing import Any


def encode(document: Any) -> bytes:
    """In UTF-8; half a character, which no text may hold, as its escape."""
    try:
        written = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return written.encode()
    except UnicodeEncodeError:
        return json.dumps(document, allow_nan=False, separators=(",", ":")).encode()
