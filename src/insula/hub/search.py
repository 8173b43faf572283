"""Asking a Hugging Face hub which GGUF repositories there are (https://huggingface.co/docs/hub/api).

The hub's answers are strangers' words: a name that is not a repository's is left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from insula.errors import DownloadError
from insula.hub import huggingface
from insula.hub.transport import Progress, Retry, Transport
from insula.locale import text

MOST = 100


@dataclass(frozen=True, kw_only=True)
class Found:
    """One repository. `licence` as its card says it; downloads as the hub counts them."""

    repo: str
    licence: str | None
    downloads: int | None
    likes: int | None
    gated: bool

    @property
    def name(self) -> str:
        return f"hf.co/{self.repo}"


def search(
    words: str, *, limit: int = 20, retry: Retry | None = None, progress: Progress | None = None
) -> list[Found]:
    """The most downloaded repositories of GGUF files that match. OfflineError, DownloadError."""
    base = huggingface.endpoint()
    query = {
        "search": words,
        "filter": "gguf",
        "sort": "downloads",
        "direction": "-1",
        "limit": str(min(limit, MOST)),
    }
    with Transport(retry=retry, token=huggingface.token(), token_for=base) as transport:
        rows, _ = transport.json(f"{base}/api/models?{urlencode(query)}", progress=progress)
    if not isinstance(rows, list):
        raise DownloadError(text("hub.not_a_hub", endpoint=base))
    return [found for row in rows[:limit] if (found := _row(row)) is not None]


def _row(row: Any) -> Found | None:
    repo = row.get("id") if isinstance(row, dict) else None
    if not isinstance(repo, str) or not re.fullmatch(r"[\w.-]+/[\w.-]+", repo, re.ASCII):
        return None
    return Found(
        repo=repo,
        licence=huggingface.licence(row),
        downloads=_count(row.get("downloads")),
        likes=_count(row.get("likes")),
        gated=row.get("gated") not in (False, None),
    )


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None
