"""What the tests let a bounded child do: the request names an attack, the reply how it went."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

_seen = {"calls": 0}


def warm() -> None:
    _seen["calls"] = 0


def handle(request: bytes) -> bytes:
    name, *arguments = json.loads(request)
    _seen["calls"] += 1
    return json.dumps(globals()["do_" + name](*arguments)).encode()


def do_echo(value: object) -> object:
    return value


def do_calls() -> int:
    return _seen["calls"]


def do_identity() -> dict[str, object]:
    return {
        "pid": os.getpid(),
        "environment": sorted(os.environ),
        "modules": sorted(name for name in sys.modules if name.startswith("insula")),
        "group": os.getpgrp() if hasattr(os, "getpgrp") else 0,
    }


def do_spin() -> None:
    while True:
        pass


def do_long_call() -> int:
    return len(str(pow(3, 10**8)))


def do_sleep() -> None:
    while True:
        time.sleep(0.01)


def do_allocate(size: int) -> int:
    return len(bytearray(size))


def do_keep(size: int) -> int:
    _seen.setdefault("kept", []).append(bytearray(size))  # type: ignore[union-attr, arg-type]
    return size


def do_reply(size: int) -> str:
    return "x" * size


def do_raise(text: str) -> None:
    raise ValueError(text)


def do_recurse(depth: int = 0) -> int:
    return do_recurse(depth + 1) + 1


def do_die(code: int) -> None:
    os._exit(code)


def do_crash() -> None:
    ctypes.string_at(0)


def do_forbidden() -> dict[str, str]:
    """Each thing a confined process must not do, and what came of it."""
    attempts: dict[str, Callable[[], object]] = {
        "read a file": lambda: Path("/etc/passwd").read_bytes(),
        "write a file": lambda: Path("/tmp/insula-test-escape").write_text("x"),
        "list a folder": lambda: list(Path("/").iterdir()),
        "open a socket": lambda: socket.socket(),
        "start a program": lambda: subprocess.run(["/bin/true"], check=True),
        "fork": lambda: os.fork(),
        "exec": lambda: os.execv("/bin/true", ["/bin/true"]),
        "signal the parent": lambda: os.kill(os.getppid(), 0),
        "start a thread": lambda: threading.Thread(target=time.sleep).start(),
    }
    if hasattr(os, "memfd_create"):
        attempts["memory file"] = lambda: os.memfd_create("x")
    outcomes = {}
    for name, attempt in attempts.items():
        try:
            attempt()
            outcomes[name] = "done"
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            outcomes[name] = type(error).__name__
    return outcomes
