"""A list of the system calls that a confined process may still make (Linux, seccomp).

Owns the two lists and the filter program; everything else answers "operation not permitted". What
is left computes, allocates, and talks over the pipes it has: no open, no socket, no new process, no
other process's limits or memory. See seccomp(2) and linux/bpf_common.h.

Best effort by design: where the kernel, the sandbox around us or an emulator has no seccomp,
`install` says so and the other bounds stand.
"""

from __future__ import annotations

import platform
import struct

# name: (x86-64, aarch64), from asm/unistd_64.h and asm-generic/unistd.h
_ALLOWED = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "fstat": (5, 80),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "setitimer": (38, 103),
    "getpid": (39, 172),
    "exit": (60, 93),
    "gettimeofday": (96, 169),
    "getrusage": (98, 165),
    "sigaltstack": (131, 132),
    "gettid": (186, 178),
    "futex": (202, 98),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "getrandom": (318, 278),
}
_OWN_LIMITS = (302, 261)  # prlimit64, for the process itself only
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column, AUDIT_ARCH_*

_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _NOT_PERMITTED, _KILL = 0x7FFF0000, 0x00050001, 0x80000000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2


def program(machine: str) -> bytes | None:
    """The filter as struct sock_filter[], or None for a machine without a list."""
    if machine not in _MACHINES:
        return None
    column, architecture = _MACHINES[machine]
    numbers = [pair[column] for pair in _ALLOWED.values()]
    steps = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    # Jumps count the steps to skip; after the list come own limits (3 steps), deny, allow.
    for index, number in enumerate(numbers):
        steps.append((_EQUAL, len(numbers) - index - 1 + 4, 0, number))
    steps += [
        (_EQUAL, 0, 2, _OWN_LIMITS[column]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_EQUAL, 1, 0, 0),
        (_RETURN, 0, 0, _NOT_PERMITTED),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def install() -> bool:
    """Filter this process from now on, for good. False where that is not possible."""
    code = program(platform.machine())
    if code is None:
        return False
    try:
        import ctypes

        class Program(ctypes.Structure):
            _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]

        c = ctypes.CDLL(None, use_errno=True)
        c.prctl.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 4]
        filter_ = Program(len(code) // 8, code)
        if c.prctl(_PR_SET_NO_NEW_PRIVS, 1, None, None, None) != 0:
            return False
        address = ctypes.addressof(filter_)
        return bool(c.prctl(_PR_SET_SECCOMP, _MODE_FILTER, address, None, None) == 0)
    except (ImportError, OSError, AttributeError):
        return False
