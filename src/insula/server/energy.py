"""Energy that requests took, where the machine counts it; nothing where it does not.

Reads the Linux power capping interface (https://docs.kernel.org/power/powercap/powercap.html): of
each package its counter of microjoules, and of memory where that is counted apart (`dram` lies
outside a package's counter; `core` and `uncore` lie within it; `psys` holds everything and is not
added). A counter begins anew at max_energy_range_uj.

What several requests share is divided evenly between those that run at each moment: a request's
share is the sum of what the machine used in each interval over how many ran then. That includes
what the machine would have used idle. Never an estimate: without counters, or where a gap between
two readings could hide a wrap, there is no number.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

#: The smallest ranges known (65 kJ) wrap after minutes at the highest powers; this is well below.
LONGEST_GAP = 60.0
_COUNTED = ("package", "dram")


@dataclass(frozen=True, kw_only=True)
class Counter:
    """One zone. range_uj: where its counter begins anew."""

    name: str
    path: Path
    range_uj: int


@dataclass
class _Running:
    began_at: float
    known: bool = True


def find_counters(root: Path) -> list[Counter]:
    """The zones that can be read and add up to the machine's use."""
    found = []
    for zone in sorted(root.glob("*:*")):
        try:
            name = (zone / "name").read_text().strip()
            counter = Counter(
                name=name,
                path=zone / "energy_uj",
                range_uj=int((zone / "max_energy_range_uj").read_text()),
            )
            int(counter.path.read_text())
        except (OSError, ValueError):  # often only root may read the counter
            continue
        if name.startswith(_COUNTED) and counter.range_uj > 0:
            found.append(counter)
    return found


class EnergyMeter:
    """Of one machine. Not for several threads at once. `clock` does not go back."""

    def __init__(self, root: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._counters = find_counters(root)
        self._clock = clock
        self._last: list[int] | None = None
        self._time = 0.0
        self._share = 0.0
        self._running: dict[object, _Running] = {}

    @property
    def available(self) -> bool:
        return bool(self._counters)

    def begin(self, request: object) -> None:
        """A request (any object, by identity) has begun."""
        if self._counters:
            self._advance()
            self._running[id(request)] = _Running(self._share)

    def tick(self) -> None:
        """Read the counters; at least every LONGEST_GAP seconds while anything runs."""
        if self._running:
            self._advance()

    def end(self, request: object) -> float | None:
        """Its joules; None where they are not known."""
        if id(request) not in self._running:
            return None
        self._advance()
        running = self._running.pop(id(request))
        return self._share - running.began_at if running.known else None

    def _advance(self) -> None:
        now = self._clock()
        try:
            values = [int(counter.path.read_text()) for counter in self._counters]
        except (OSError, ValueError):
            values = None
        before, gap = self._last, now - self._time
        self._last, self._time = values, now
        if not self._running:
            return
        if before is None or values is None or gap > LONGEST_GAP:
            for running in self._running.values():
                running.known = False
            return
        used = sum(
            (value - earlier) % counter.range_uj
            for value, earlier, counter in zip(values, before, self._counters, strict=True)
        )
        self._share += used / 1e6 / len(self._running)
