"""A child process that does one kind of work on untrusted input, within bounds it cannot lift.

Owns starting, warming, asking and stopping such a child. What it does is a function in a module
that the child imports; requests and replies are bytes over pipes. It is started once and kept:
a start costs tens of milliseconds, a request a fraction of one. Whoever exceeds a bound is stopped
from outside the interpreter, so that no single long operation can hold it off, and the next request
gets a fresh child.

Refuses to run work without its bounds. What holds where (see confined.py, the child's side):

    bound            Linux                     macOS                      Windows
    CPU time         timer signal, kernel      timer signal, kernel       watching thread
    wall time        the parent kills          the parent kills           the parent kills
    memory           address space, kernel     watching thread            watching thread
    reply size       checked by both sides     checked by both sides      checked by both sides
    files, sockets,  descriptor limit and      descriptor limit           not bounded
    processes        system-call filter

The child gets an empty environment (no secrets), its own process group (Ctrl-C is not for it), no
standard error, and no modules but the standard library and the packages named.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from insula.errors import InsulaError, ResourceError
from insula.security.confined import DONE, EXIT_CPU, EXIT_MEMORY, HEADER, MAX_REQUEST

Bound = Literal["cpu", "wall", "memory", "request", "reply", "crash"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may use.

    Memory is counted above what the idle child holds, and the request's own bytes (12-fold, for
    its parsed form) are added. request_bytes may be up to 64 MB.
    """

    cpu_seconds: float = 1.0
    wall_seconds: float = 10.0
    memory_bytes: int = 64 << 20
    request_bytes: int = MAX_REQUEST
    reply_bytes: int = 8 << 20


class BoundExceededError(ResourceError):
    """The work was stopped. `bound` says by what; `crash` is any other death of the child."""

    def __init__(self, message: str, *, bound: Bound) -> None:
        super().__init__(message)
        self.bound = bound


class WorkFailedError(InsulaError):
    """The work itself raised: `kind` is the exception's type name in the child."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class BoundedChild:
    """One warm child. Safe to call from several threads, which take turns."""

    def __init__(self, module: str, *, packages: Iterable[str] = (), limits: Limits) -> None:
        """module: has `handle(request: bytes) -> bytes` and `warm() -> None`.

        packages: the packages beside insula that it imports. Nothing is started yet.
        """
        self._module = module
        self._packages = tuple(packages)
        self.limits = limits
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._served = 0
        self._at_exit: weakref.finalize[..., BoundedChild] | None = None

    def start(self) -> None:
        """Start the child now, without waiting until it is ready."""
        with self._lock:
            self._ensure()

    def call(self, request: bytes) -> bytes:
        """The reply. Raises BoundExceededError, WorkFailedError (what `handle` raised), and
        ResourceError where no child can be started.
        """
        allowed = self.limits.request_bytes
        if len(request) > allowed:
            raise BoundExceededError(
                f"a request of {len(request)} bytes; allowed: {allowed}", bound="request"
            )
        with self._lock:
            process = self._ensure()
            used = self._served > 0
            try:
                return self._call(process, request)
            except BoundExceededError as error:
                # Memory may have been short only because of what earlier requests left behind.
                if error.bound != "memory" or not used:
                    raise
            return self._call(self._ensure(), request)

    def close(self) -> None:
        """Stop the child. A later call starts another."""
        with self._lock:
            self._discard(kill=False)

    def _ensure(self) -> subprocess.Popen[bytes]:
        process = self._process
        if process is not None and self._owner == os.getpid() and process.poll() is None:
            return process
        self._discard(kill=True)
        self._process = process = self._spawn()
        self._owner = os.getpid()
        self._served = 0
        self._at_exit = weakref.finalize(self, _end, process, self._owner)
        return process

    def _spawn(self) -> subprocess.Popen[bytes]:
        if not sys.executable:
            raise ResourceError(
                "untrusted work needs a process of its own, and this program does not know "
                "a Python executable (sys.executable) to start"
            )
        limits = self.limits
        code = (
            f"import sys; sys.path += {self._search_path()!r}\n"
            "from insula.security.confined import serve\n"
            f"serve({self._module!r}, cpu_seconds={limits.cpu_seconds!r}, "
            f"memory_bytes={limits.memory_bytes!r}, reply_bytes={limits.reply_bytes!r})"
        )
        environment = {"TZ": os.environ["TZ"]} if "TZ" in os.environ else {}
        if "SYSTEMROOT" in os.environ:  # Windows starts nothing without it
            environment["SYSTEMROOT"] = os.environ["SYSTEMROOT"]
        try:
            return subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", "-X", "utf8", "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                cwd=Path(sys.executable).anchor,
                process_group=0 if os.name == "posix" else None,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        except OSError as error:
            raise ResourceError(
                f"the process for untrusted work cannot be started: {error.strerror or error}"
            ) from error

    def _search_path(self) -> list[str]:
        roots: list[str] = []
        for package in ("insula", *self._packages):
            spec = importlib.util.find_spec(package)
            if spec is None or spec.origin is None:
                raise ResourceError(f"the package {package} is missing; install it with pip")
            is_package = spec.submodule_search_locations is not None
            root = str(Path(spec.origin).parents[1 if is_package else 0])
            if root not in roots:
                roots.append(root)
        return roots

    def _call(self, process: subprocess.Popen[bytes], request: bytes) -> bytes:
        late = threading.Event()

        def stop() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(self.limits.wall_seconds, stop)
        timer.daemon = True
        timer.start()
        try:
            reply = self._exchange(process, request)
        except BaseException:
            self._discard(kill=True)  # what is still in the pipes belongs to nobody
            raise
        finally:
            timer.cancel()
        if reply is None:
            raise self._verdict(self._discard(kill=False), late=late.is_set())
        self._served += 1
        if reply[:1] == DONE:
            return reply[1:]
        kind, _, message = reply[1:].decode(errors="replace").partition("\n")
        if kind == "ReplyTooLarge":
            raise BoundExceededError(f"its result has {message}", bound="reply")
        if kind == "MemoryError":
            self._discard(kill=True)
            raise self._verdict(EXIT_MEMORY, late=False)
        raise WorkFailedError(kind, message)

    def _exchange(self, process: subprocess.Popen[bytes], request: bytes) -> bytes | None:
        """The reply, or None if the child died."""
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(HEADER.pack(len(request)) + request)
            process.stdin.flush()
            header = process.stdout.read(HEADER.size)
            if len(header) < HEADER.size:
                return None
            (size,) = HEADER.unpack(header)
            if size > self.limits.reply_bytes + 4096:
                raise BoundExceededError(
                    f"its result has {size} bytes; allowed: {self.limits.reply_bytes}",
                    bound="reply",
                )
            reply = process.stdout.read(size)
        except (BrokenPipeError, ConnectionResetError):
            return None
        return reply if len(reply) == size else None

    def _verdict(self, code: int | None, *, late: bool) -> BoundExceededError:
        limits = self.limits
        if late:
            return BoundExceededError(
                f"it took longer than {limits.wall_seconds:g} s", bound="wall"
            )
        if code == EXIT_CPU or code == -getattr(signal, "SIGPROF", -1):
            return BoundExceededError(
                f"it used more than {limits.cpu_seconds:g} s of processor time", bound="cpu"
            )
        if code == EXIT_MEMORY:
            return BoundExceededError(
                f"it used more than {limits.memory_bytes >> 20} MB of memory", bound="memory"
            )
        return BoundExceededError(f"its process ended with code {code}", bound="crash")

    def _discard(self, *, kill: bool) -> int | None:
        """End the child, if it is ours; its exit code."""
        process, self._process = self._process, None
        if process is None:
            return None
        if self._at_exit is not None:
            self._at_exit.detach()
        return _end(process, self._owner, kill=kill)


def _end(process: subprocess.Popen[bytes], owner: int, kill: bool = False) -> int | None:
    if owner != os.getpid():  # inherited over a fork: the parent's to end
        return None
    if kill:
        process.kill()
    for pipe in (process.stdin, process.stdout):
        try:
            if pipe is not None:
                pipe.close()
        except OSError:
            pass
    try:
        return process.wait(timeout=0.5)  # it ends by itself when its input does
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
