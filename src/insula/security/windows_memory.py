"""How much memory this process has committed, as Windows counts it. Imported there alone."""

from __future__ import annotations

import ctypes


class _Counters(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS of psapi.h."""

    _fields_ = [
        ("cb", ctypes.c_uint32),
        ("page_faults", ctypes.c_uint32),
        ("peak_working_set", ctypes.c_size_t),
        ("working_set", ctypes.c_size_t),
        ("peak_paged_pool", ctypes.c_size_t),
        ("paged_pool", ctypes.c_size_t),
        ("peak_nonpaged_pool", ctypes.c_size_t),
        ("nonpaged_pool", ctypes.c_size_t),
        ("committed", ctypes.c_size_t),
        ("peak_committed", ctypes.c_size_t),
    ]


def committed() -> int:
    """Bytes; 0 if the system does not say."""
    counters = _Counters(cb=ctypes.sizeof(_Counters))
    kernel = getattr(ctypes, "windll").kernel32  # noqa: B009 - not there on other systems
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    kernel.K32GetProcessMemoryInfo.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32]
    found = kernel.K32GetProcessMemoryInfo(
        kernel.GetCurrentProcess(), ctypes.byref(counters), counters.cb
    )
    return int(counters.committed) if found else 0
