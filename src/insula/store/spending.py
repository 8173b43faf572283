"""Tokens that tenants have used, per day of UTC. What budgets are held against."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from insula.store.database import Database


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Tokens, prompts' and answers' together."""

    today: int
    total: int


def day(now: float) -> str:
    """The day of UTC, 2026-11-22."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d")


def seconds_left_today(now: float) -> int:
    """Until UTC's midnight; at least 1."""
    return max(1, 86_400 - int(now) % 86_400)


def charge(
    store: Database, tenant: str, *, now: float, prompt_tokens: int, completion_tokens: int
) -> None:
    """Add one request."""
    store.run(
        """INSERT INTO spending (tenant, day, requests, prompt_tokens, completion_tokens)
        VALUES (?, ?, 1, ?, ?) ON CONFLICT (tenant, day) DO UPDATE SET requests = requests + 1,
        prompt_tokens = prompt_tokens + excluded.prompt_tokens,
        completion_tokens = completion_tokens + excluded.completion_tokens""",
        (tenant, day(now), prompt_tokens, completion_tokens),
    )


def spent(store: Database, tenant: str, *, now: float) -> Spent:
    """What a tenant has used."""
    row = store.row(
        """SELECT total(iif(day = ?2, prompt_tokens + completion_tokens, 0)),
        total(prompt_tokens + completion_tokens) FROM spending WHERE tenant = ?1""",
        (tenant, day(now)),
    )
    assert row is not None
    return Spent(today=int(row[0]), total=int(row[1]))
