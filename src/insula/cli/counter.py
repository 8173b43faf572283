"""A line on standard error that says how far a piece of work has come."""

from __future__ import annotations

import sys
import time


class Counter:
    """Call it with (done, total) or (done, total, name); `close` wipes the line."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._last = 0.0

    def __call__(self, done: int, total: int, name: str = "") -> None:
        now = time.monotonic()
        if now - self._last < 0.05 and done < total:
            return
        self._last = now
        percent = 100 * done // total if total else 100
        sys.stderr.write(f"\r\x1b[K{self._label}: {percent} % {name[:40]}")
        sys.stderr.flush()

    def close(self) -> None:
        """Wipe the line."""
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()
