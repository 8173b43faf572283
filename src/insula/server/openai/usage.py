"""What a request cost, as OpenAI writes it, and whatever did not reach the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from insula.types import Report


def usage(reports: Sequence[Report], *, prompts: int = 1) -> dict[str, Any]:
    """Of `prompts` prompts with equally many samples each, one after the other: each prompt's
    tokens count once. cached_tokens: of those, how many were not computed anew.
    """
    each = len(reports) // prompts
    first = reports[::each]
    prompt = sum(report.prompt_tokens for report in first)
    completion = sum(report.completion_tokens for report in reports)
    document: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {
            "cached_tokens": sum(report.cached_tokens for report in first),
        },
    }
    dropped = sum(report.dropped_tokens for report in first)
    turns = sum(report.dropped_turns for report in first)
    if dropped or turns:
        document["dropped_tokens"], document["dropped_turns"] = dropped, turns
    return document
