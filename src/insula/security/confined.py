"""The inside of a bounded child (see child.py): give up what is not needed, then serve requests.

Runs in a fresh interpreter. Owns the order that matters: import and warm up everything first, then
lower the limits for good, then read the first request. Imports the standard library alone.

Invariant: no Python code has to run for a bound to hold where the kernel can hold it. A handler's
exception is a reply (its type's name and message), a MemoryError among them; what the handler does
not survive ends the process.
"""

from __future__ import annotations

import importlib
import os
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

EXIT_CPU = 81
EXIT_MEMORY = 82
HEADER = struct.Struct("<I")
MAX_REQUEST = 64 << 20
#: A request's own bytes, parsed and copied a few times, come on top of what it may use.
MEMORY_PER_REQUEST_BYTE = 12

DONE, RAISED = b"=", b"!"


def serve(module: str, *, cpu_seconds: float, memory_bytes: int, reply_bytes: int) -> None:
    """Serve `module.handle` until the parent closes the pipe."""
    worker = importlib.import_module(module)
    worker.warm()
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    meter = _Meter(cpu_seconds, memory_bytes)
    _confine()
    while True:
        header = requests.read(HEADER.size)
        if len(header) < HEADER.size:
            os._exit(0)
        (size,) = HEADER.unpack(header)
        if size > MAX_REQUEST:
            os._exit(EXIT_MEMORY)
        meter.begin(size)
        reply = _answer(worker.handle, requests.read(size))
        meter.end()
        if len(reply) > reply_bytes:
            reply = RAISED + b"ReplyTooLarge\n%d bytes; allowed: %d" % (len(reply), reply_bytes)
        replies.write(HEADER.pack(len(reply)) + reply)
        replies.flush()


def _answer(handle: Callable[[bytes], bytes], request: bytes) -> bytes:
    try:
        return DONE + handle(request)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the reply
        name = type(error).__name__
        try:
            text = str(error)[:2000]
        except Exception:  # noqa: BLE001 - an exception of untrusted work may fail at this too
            text = ""
        return RAISED + f"{name}\n{text}".encode(errors="replace")


class _Meter:
    """CPU time and memory of one request: by the kernel, or by a watching thread where it can't."""

    def __init__(self, cpu_seconds: float, memory_bytes: int) -> None:
        self._cpu_seconds = cpu_seconds
        self._memory_bytes = memory_bytes
        self._timer = hasattr(signal, "setitimer")
        self._deadline = float("inf")
        self._space = _address_space() if sys.platform == "linux" else None
        if self._space is None or not self._timer:
            self._idle = self._ceiling = _resident()
            threading.Thread(target=self._watch, daemon=True).start()
        elif self._timer:
            signal.signal(signal.SIGPROF, signal.SIG_DFL)  # whose default ends the process

    def begin(self, request_bytes: int) -> None:
        memory = self._memory_bytes + MEMORY_PER_REQUEST_BYTE * request_bytes
        if self._space is not None:
            import resource

            hard = resource.getrlimit(resource.RLIMIT_AS)[1]
            resource.setrlimit(resource.RLIMIT_AS, (self._space + memory, hard))
        else:
            self._ceiling = self._idle + memory
        self._deadline = time.process_time() + self._cpu_seconds
        if self._timer:
            signal.setitimer(signal.ITIMER_PROF, self._cpu_seconds)

    def end(self) -> None:
        self._deadline = float("inf")
        if self._timer:
            signal.setitimer(signal.ITIMER_PROF, 0)

    def _watch(self) -> None:
        while True:
            time.sleep(0.02)
            if time.process_time() > self._deadline:
                os._exit(EXIT_CPU)
            if self._deadline < float("inf") and _resident() > self._ceiling:
                os._exit(EXIT_MEMORY)


def _confine() -> None:
    """Give up files, sockets, processes and core dumps, as far as the system lets us."""
    if os.name != "posix":
        return
    import resource

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":  # while files can still be opened: it loads a library
        from insula.security import syscall_filter

        syscall_filter.install()
    # No new descriptors: what is open stays open, nothing else, sockets included.
    for name in ("RLIMIT_CORE", "RLIMIT_FSIZE", "RLIMIT_NPROC", "RLIMIT_NOFILE"):
        try:
            resource.setrlimit(getattr(resource, name), (0, 0))
        except (AttributeError, OSError, ValueError):
            continue


def _address_space() -> int | None:
    """Bytes of address space in use, where the kernel can bound it."""
    try:
        pages = Path("/proc/self/statm").read_bytes().split()[0]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def _resident() -> int:
    """Bytes of memory in use (POSIX: the most so far, which serves a ceiling as well)."""
    if os.name == "posix":
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak << 10
    from insula.security import windows_memory

    return windows_memory.committed()
