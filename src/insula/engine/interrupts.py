"""Ctrl-C at any time, and nothing half-done: SIGINT waits until a critical section is over.

Owns `HeldInterrupts`. Only the main thread receives signals, so elsewhere it does nothing. The
section must be short (one engine step, or a wait of a fraction of a second).
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType


class HeldInterrupts:
    """`with HeldInterrupts():` delivers a SIGINT that arrives inside once the block has ended."""

    __slots__ = ("_arrived", "_previous")

    def __init__(self) -> None:
        self._arrived: FrameType | bool | None = False
        self._previous: object = None

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        previous = signal.getsignal(signal.SIGINT)
        if not callable(previous):
            return
        self._previous = previous
        try:
            signal.signal(signal.SIGINT, self._note)
        except ValueError:  # a sub-interpreter's main thread may not set handlers
            self._previous = None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        previous = self._previous
        if previous is None:
            return
        assert callable(previous)
        signal.signal(signal.SIGINT, previous)
        if self._arrived is not False:
            frame, self._arrived = self._arrived, False
            previous(signal.SIGINT, frame)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._arrived = frame
