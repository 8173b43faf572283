"""A terminal of our own: a program under it, what it shows, and keys for it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from typing import Self

_ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_=>])")
CTRL_C, CTRL_D, ENTER, NEW_LINE, UP = "\x03", "\x04", "\r", "\n", "\x1b[A"


class Terminal:
    """Runs `python -m insula args` with a pseudo-terminal as its controlling one."""

    def __init__(self, args: list[str], env: dict[str, str]) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "insula", *args],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            # Nobody answers the editor's question where the cursor is.
            env={**env, "PROMPT_TOOLKIT_NO_CPR": "1"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self.raw = ""
        self._seen = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self._master)

    def keys(self, text: str) -> None:
        """Type."""
        os.write(self._master, text.encode())

    @property
    def text(self) -> str:
        """What was shown, without escape codes."""
        return _ESCAPES.sub("", self.raw).replace("\r", "")

    def expect(self, pattern: str, seconds: float = 20) -> str:
        """Wait until what is shown since the last `expect` matches; returns the text up to it."""
        deadline = time.monotonic() + seconds
        while True:
            fresh = self.text[self._seen :]
            found = re.search(pattern, fresh)
            if found:
                self._seen += found.end()
                return fresh[: found.end()]
            if not self._read(deadline):
                raise AssertionError(f"waited for {pattern!r}; shown since: {fresh!r}")

    def end(self, seconds: float = 30) -> int:
        """Wait for the program to end; its exit code."""
        deadline = time.monotonic() + seconds
        while self._read(deadline):
            pass
        return self.process.wait(timeout=max(1.0, deadline - time.monotonic()))

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # the other side is closed
            return False
        self.raw += data.decode("utf-8", "replace")
        return bool(data)
