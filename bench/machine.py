"""What a figure depends on, without a name of the machine or its user; and a process's memory."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CPUINFO = Path("/proc/cpuinfo")


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, system, Python."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def load() -> float:
    """Programs that wanted a core in the last minute, besides what little we did."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def has_flag(flag: str) -> bool:
    """Whether Linux lists a feature of the processor, such as amx_int8."""
    return CPUINFO.exists() and flag in _cpu_fields().get("flags", "").split()


def commit() -> str:
    """The tree's commit, with a plus if it has changes."""
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--abbrev=12"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def pss(pid: int) -> int:
    """Bytes of a process: its own pages, and its share of those that others map too.

    Linux, /proc/PID/smaps_rollup (proc_pid_smaps(5)); 0 where there is no such file.
    """
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except (OSError, ValueError):
        return 0
    for line in text.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def peak_rss() -> int:
    """Most bytes that this process ever had in memory, shared pages whole."""
    try:
        import resource
    except ImportError:
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _cpu_fields() -> dict[str, str]:
    first = CPUINFO.read_text(encoding="utf-8").partition("\n\n")[0]
    parts = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in parts}


def _cpu_model() -> str:
    """The model's name; where a hypervisor hides it, family, model and stepping too."""
    if not CPUINFO.exists():
        return platform.processor() or platform.machine()
    fields = _cpu_fields()
    name = fields.get("model name", platform.machine())
    if "cpu family" not in fields:
        return name
    numbers = [fields.get(k) for k in ("cpu family", "model", "stepping")]
    return f"{name} (family {numbers[0]}, model {numbers[1]}, stepping {numbers[2]})"
