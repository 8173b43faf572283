"""Requests and tokens per minute, as buckets that refill evenly.

A bucket holds one minute's worth, so that a pause may be followed by a burst of that size and no
more. Requests are taken before one begins. Tokens are known when it has ended: a bucket may then be
in debt, and nothing begins until it is not. Kept in this process and forgotten with it; budgets,
which must not be, are in the store.
"""

from __future__ import annotations

from dataclasses import dataclass

from insula.store.keys import Limits

_MOST_TENANTS = 10_000


@dataclass
class _Bucket:
    level: float
    since: float

    def at(self, now: float, per_minute: int) -> float:
        """The level now."""
        gained = max(0.0, now - self.since) * per_minute / 60
        self.level = min(float(per_minute), self.level + gained)
        self.since = now
        return self.level


class Rates:
    """Of all tenants. `now` is any clock that does not go back."""

    def __init__(self) -> None:
        self._buckets: dict[tuple[str, str], _Bucket] = {}

    def wait(
        self, tenant: str, limits: Limits, now: float, *, spends: bool = True
    ) -> tuple[str, float] | None:
        """Take one request; None, or which limit is reached and the seconds until it is not.

        spends: whether it may use tokens.
        """
        tokens, requests = limits.tokens_per_minute, limits.requests_per_minute
        if tokens is not None and spends:
            level = self._bucket(tenant, "tokens", tokens, now).at(now, tokens)
            if level <= 0:
                return "tokens", (1 - level) * 60 / tokens
        if requests is not None:
            bucket = self._bucket(tenant, "requests", requests, now)
            level = bucket.at(now, requests)
            if level < 1:
                return "requests", (1 - level) * 60 / requests
            bucket.level -= 1
        return None

    def spend(self, tenant: str, limits: Limits, tokens: int, now: float) -> None:
        """A request has ended that used so many tokens."""
        if limits.tokens_per_minute is not None:
            bucket = self._bucket(tenant, "tokens", limits.tokens_per_minute, now)
            bucket.at(now, limits.tokens_per_minute)
            bucket.level -= tokens

    def _bucket(self, tenant: str, kind: str, per_minute: int, now: float) -> _Bucket:
        found = self._buckets.get((tenant, kind))
        if found is None:
            if len(self._buckets) >= _MOST_TENANTS:
                # A bucket that nobody touched for a minute is full: forgetting it changes nothing
                # but a large debt.
                self._buckets = {
                    key: bucket for key, bucket in self._buckets.items() if bucket.since > now - 60
                }
            found = self._buckets[tenant, kind] = _Bucket(float(per_minute), now)
        return found
