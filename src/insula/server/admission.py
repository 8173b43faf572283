"""Who may begin now: a bound on the requests that are here, so that the rest is told at once.

A request weighs as many sequences as it asks for. What runs and what waits together never weigh
more than the capacity; from half of it on, no tenant may have more than an equal share. Refused is
who comes, never who is here.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from insula.server.errors import RefusalError

#: Seconds that a request is taken to last before any has ended.
GUESS = 5.0


class Admission:
    """Of one event loop; nothing here waits."""

    def __init__(self, *, running: int, waiting: int) -> None:
        self.running = running
        self.capacity = running + waiting
        self.inside = 0
        self.stopping = False
        self._of: Counter[str] = Counter()
        self._seconds = GUESS

    @contextmanager
    def enter(self, weight: int, tenant: str) -> Iterator[None]:
        """For as long as the request is here. Raises RefusalError (503) with when to come back."""
        if self.stopping:
            raise RefusalError(503, "the server is stopping", code="stopping", retry_after=5)
        if self.inside + weight > self.capacity:
            raise self._full(f"{self.inside} requests run or wait, of {self.capacity} at most")
        tenants = len(self._of) + (tenant not in self._of)
        share = max(1, self.capacity // tenants)
        if 2 * self.inside >= self.capacity and self._of[tenant] + weight > share:
            raise self._full(f"this key has {self._of[tenant]} of {share} places while others wait")
        began = time.monotonic()
        self.inside += weight
        self._of[tenant] += weight
        try:
            yield
        finally:
            self.inside -= weight
            self._of[tenant] -= weight
            if not self._of[tenant]:
                del self._of[tenant]
            self._seconds += 0.1 * (time.monotonic() - began - self._seconds)

    def _full(self, found: str) -> RefusalError:
        rounds = self.inside / max(1, self.running)
        pause = min(60.0, max(1.0, self._seconds * rounds / 2))
        return RefusalError(
            503, f"the server is full: {found}; come back later", code="full", retry_after=pause
        )
