"""A bounded child keeps its bounds, dies alone, and is replaced."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import platform
import signal
import struct
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from insula.errors import ResourceError
from insula.security import child as child_module
from insula.security import syscall_filter
from insula.security.child import BoundedChild, BoundExceededError, Limits, WorkFailedError

HERE = str(Path(__file__).parent)
LINUX = sys.platform == "linux"


@pytest.fixture(autouse=True)
def _findable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(HERE)
    importlib.invalidate_caches()


def make(**limits: Any) -> BoundedChild:
    return BoundedChild(
        "bounded_work",
        packages=("bounded_work",),
        limits=Limits(**({"cpu_seconds": 0.5, "wall_seconds": 30.0} | limits)),
    )


@pytest.fixture
def child() -> Iterator[BoundedChild]:
    made = make()
    yield made
    made.close()


def ask(child: BoundedChild, name: str, *arguments: Any) -> Any:
    return json.loads(child.call(json.dumps([name, *arguments]).encode()))


def test_one_child_serves_many_requests(child: BoundedChild) -> None:
    child.start()
    identities = {ask(child, "identity")["pid"] for _ in range(20)}
    assert len(identities) == 1
    assert os.getpid() not in identities
    assert ask(child, "calls") == 21
    assert ask(child, "echo", "ñ" * 100_000) == "ñ" * 100_000


def test_threads_take_turns(child: BoundedChild) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: ask(child, "echo", n), range(200)))
    assert answers == list(range(200))


def test_no_secrets_and_little_else_come_along(
    child: BoundedChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    identity = ask(child, "identity")
    assert set(identity["environment"]) <= {"TZ", "SYSTEMROOT", "LC_CTYPE"}
    assert all(name.startswith(("insula.security",)) for name in identity["modules"][1:])
    if os.name == "posix":
        assert identity["group"] != os.getpgrp()


@pytest.mark.parametrize("attack", ["spin", "long_call"])
def test_processor_time(child: BoundedChild, attack: str) -> None:
    first = ask(child, "identity")["pid"]
    with pytest.raises(BoundExceededError, match=r"more than 0.5 s of processor time") as caught:
        ask(child, attack)
    assert caught.value.bound == "cpu"
    assert ask(child, "identity")["pid"] != first


def test_wall_time() -> None:
    child = make(wall_seconds=1.0)
    with pytest.raises(BoundExceededError, match="longer than 1 s") as caught:
        ask(child, "sleep")
    assert caught.value.bound == "wall"
    assert ask(child, "echo", 1) == 1
    child.close()


def test_memory(child: BoundedChild) -> None:
    assert ask(child, "allocate", 40 << 20) == 40 << 20
    for _ in range(3):
        with pytest.raises(BoundExceededError, match="more than 64 MB of memory") as caught:
            ask(child, "allocate", 80 << 20)
        assert caught.value.bound == "memory"
    assert ask(child, "allocate", 40 << 20) == 40 << 20


def test_memory_that_earlier_requests_kept_is_not_held_against_the_next(
    child: BoundedChild,
) -> None:
    first = ask(child, "identity")["pid"]
    ask(child, "keep", 40 << 20)
    assert ask(child, "allocate", 40 << 20) == 40 << 20  # in a fresh child, without an error
    assert ask(child, "identity")["pid"] != first


def test_large_requests_bring_their_own_room(child: BoundedChild) -> None:
    text = "ñ" * 5_000_000
    assert ask(make(cpu_seconds=5.0, reply_bytes=64 << 20), "echo", text) == text
    with pytest.raises(BoundExceededError, match="a request of") as caught:
        make(request_bytes=1000).call(b"x" * 1001)
    assert caught.value.bound == "request"


def test_reply(child: BoundedChild) -> None:
    small = make(reply_bytes=100_000)
    assert len(ask(small, "reply", 90_000)) == 90_000
    with pytest.raises(BoundExceededError, match="allowed: 100000") as caught:
        ask(small, "reply", 200_000)
    assert caught.value.bound == "reply"
    assert ask(small, "echo", 2) == 2
    small.close()


def test_exceptions_come_back_by_name(child: BoundedChild) -> None:
    with pytest.raises(WorkFailedError, match=r"^no: ñ$") as caught:
        ask(child, "raise", "no: ñ")
    assert caught.value.kind == "ValueError"
    with pytest.raises(WorkFailedError) as recursion:
        ask(child, "recurse")
    assert recursion.value.kind == "RecursionError"
    assert ask(child, "calls") == 3  # the same child all along


@pytest.mark.parametrize("attack", [("die", 3), ("die", 0), ("crash",)])
def test_death_is_an_error_and_the_next_request_works(
    child: BoundedChild, attack: tuple[Any, ...]
) -> None:
    with pytest.raises(BoundExceededError, match="ended with code") as caught:
        ask(child, *attack)
    assert caught.value.bound == "crash"
    assert ask(child, "echo", 5) == 5


@pytest.mark.skipif(not LINUX, reason="the system-call filter is Linux's")
@pytest.mark.skipif(
    syscall_filter.program(platform.machine()) is None, reason="no filter for this machine"
)
def test_nothing_outside_can_be_reached(child: BoundedChild) -> None:
    outcomes = ask(child, "forbidden")
    assert len(outcomes) == 10
    assert {name: how for name, how in outcomes.items() if how == "done"} == {}


def test_it_ends_with_its_owner() -> None:
    child = make()
    pid = ask(child, "identity")["pid"]
    del child
    gc.collect()
    deadline = time.monotonic() + 10
    while _alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_an_interrupt_here_leaves_no_half_reply(child: BoundedChild) -> None:
    ask(child, "echo", 0)
    timer = threading.Timer(0.2, signal.pthread_kill, [threading.get_ident(), signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        ask(child, "sleep")
    timer.join()
    assert ask(child, "echo", "mine") == "mine"


def test_where_no_child_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_module.sys, "executable", "")
    with pytest.raises(ResourceError, match="does not know a Python executable"):
        ask(make(), "echo", 1)
    monkeypatch.setattr(child_module.sys, "executable", "/nowhere/python")
    with pytest.raises(ResourceError, match="cannot be started"):
        ask(make(), "echo", 1)
    with pytest.raises(ResourceError, match="no_such_package is missing"):
        BoundedChild("x", packages=("no_such_package",), limits=Limits()).call(b"")


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_program_decides_as_listed(machine: str) -> None:
    """Runs the program in a small interpreter of its three instructions."""
    code = syscall_filter.program(machine)
    assert code is not None
    steps = [struct.unpack_from("=HBBI", code, at) for at in range(0, len(code), 8)]
    column = ["x86_64", "aarch64"].index(machine)
    architecture = [0xC000003E, 0xC00000B7][column]

    def decide(number: int, first_argument: int = 0, arch: int = architecture) -> int:
        data = {0: number, 4: arch, 16: first_argument}
        value, at = 0, 0
        while True:
            kind, yes, no, k = steps[at]
            at += 1
            if kind == 0x20:
                value = data[k]
            elif kind == 0x15:
                at += yes if value == k else no
            else:
                return k

    allow, deny = 0x7FFF0000, 0x00050001
    listed = {pair[column] for pair in syscall_filter._ALLOWED.values()}
    limits = syscall_filter._OWN_LIMITS[column]
    for number in range(500):
        expected = allow if number in listed or number == limits else deny
        assert decide(number) == expected, number
    assert decide(limits, first_argument=1) == deny
    assert decide(0, arch=0x40000003) == 0x80000000
    assert syscall_filter.program("riscv64") is None
