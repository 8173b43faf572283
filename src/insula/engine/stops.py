"""Where an answer ends because of its text: stop strings, also across tokens and chunks.

Owns the text that may be the beginning of a stop string and is therefore held back. The cut is
a function of the whole text: it falls before the stop string that is complete first (and of
those that end together, before the longest), however the text was split into pushes.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Feed text in pieces; get back what may be shown."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(stops)
        self.hit: str | None = None
        self._held = ""

    def push(self, text: str) -> str:
        """Text that is safe to show. After a hit, `hit` names the stop string and nothing more
        comes out."""
        if self.hit is not None:
            return ""
        if not self.stops:
            return text
        text = self._held + text
        first: tuple[int, int, str] | None = None
        for stop in self.stops:
            start = text.find(stop)
            if start >= 0 and (first is None or (start + len(stop), start) < first[:2]):
                first = (start + len(stop), start, stop)
        if first is not None:
            self.hit, self._held = first[2], ""
            return text[: first[1]]
        keep = max(_overlap(text, stop) for stop in self.stops)
        cut = len(text) - keep
        self._held = text[cut:]
        return text[:cut]

    def flush(self) -> str:
        """The text held back, when no more is to come."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper prefix of stop that text ends with."""
    for n in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0
