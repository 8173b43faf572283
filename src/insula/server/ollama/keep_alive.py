"""How long Ollama's clients want a model to stay: `keep_alive`, as seconds."""

from __future__ import annotations

import re

from insula.errors import ConfigError
from insula.server.models import DEFAULT, KeepAlive

#: A year: more is for ever, and no clock's business.
MOST_SECONDS = 365 * 86400.0
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)(ns|us|µs|ms|s|m|h)")


def seconds_of(keep_alive: object) -> KeepAlive:
    """Ollama's keep_alive: seconds, or a duration as Go writes it (5m, 1h30m, 500ms); negative
    for ever. Raises ConfigError."""
    if keep_alive is None:
        return DEFAULT
    if isinstance(keep_alive, int | float) and not isinstance(keep_alive, bool):
        return None if keep_alive < 0 else min(float(keep_alive), MOST_SECONDS)
    if isinstance(keep_alive, str):
        seconds = _duration(keep_alive.strip())
        if seconds is not None:
            return None if seconds < 0 else min(seconds, MOST_SECONDS)
    raise ConfigError(
        f"keep_alive: found {str(keep_alive)[:40]!r}; allowed: seconds, or such as 10m, 1h30m, -1"
    )


def _duration(written: str) -> float | None:
    sign = -1.0 if written.startswith("-") else 1.0
    rest = written.lstrip("+-")
    if re.fullmatch(r"\d{1,12}(?:\.\d{1,9})?", rest):
        return sign * float(rest)
    parts = _PART.findall(rest)
    if not parts or "".join(number + unit for number, unit in parts) != rest:
        return None
    return sign * sum(float(number) * _UNITS[unit] for number, unit in parts)
