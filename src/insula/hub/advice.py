"""Whether a model fits on this machine: what it needs in memory, and what is there.

An estimate with its parts named. Weights are counted as the file has them (the native engine
repacks them into as many bytes), the KV cache exactly, and OVERHEAD for the rest. Memory is the
system's own figure of what can be had without swapping, or what the control group leaves,
whichever is less.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from insula.engine.context import OVERHEAD


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes. `limit` is the control group's, None without one; None: the system does not say."""

    total: int | None
    available: int | None
    limit: int | None


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Bytes that a model takes with a context of `n_ctx` tokens."""

    weights: int
    kv_cache: int
    n_ctx: int
    overhead: int = OVERHEAD

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.overhead


def memory() -> Memory:
    """What this process may still use."""
    return linux_memory(Path("/")) if sys.platform == "linux" else _system_memory()


def linux_memory(root: Path) -> Memory:
    """From /proc/meminfo and the control groups (both versions) below `root`."""
    fields: dict[str, int] = {}
    with suppress(OSError, ValueError):
        for line in (root / "proc/meminfo").read_text().splitlines():
            name, _, rest = line.partition(":")
            if rest.endswith("kB"):
                fields[name] = int(rest.split()[0]) * 1024
    total, available = fields.get("MemTotal"), fields.get("MemAvailable")
    limit, left = _group_limit(root, total)
    if left is not None:
        available = left if available is None else min(available, left)
    return Memory(total=total, available=available, limit=limit)


def _group_limit(root: Path, total: int | None) -> tuple[int | None, int | None]:
    """The tightest control group's limit and what it leaves, in bytes."""
    best: tuple[int | None, int | None] = (None, None)
    for folder, limit_name, used_name in _group_folders(root):
        try:
            limit = int((folder / limit_name).read_text())
            used = int((folder / used_name).read_text())
        except (OSError, ValueError):  # "max": no limit here
            continue
        # Version 1 says "none" by a number near 2^63.
        if total is not None and limit >= total:
            continue
        # The cache of files is given up when memory is asked for.
        with suppress(OSError, ValueError):
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            for name in ("inactive_file", "active_file"):  # version 1 has totals over subgroups
                used -= int(stat.get(f"total_{name}", stat.get(name, 0)))
        left = max(0, limit - max(0, used))
        if best[1] is None or left < best[1]:
            best = (limit, left)
    return best


def _group_folders(root: Path) -> list[tuple[Path, str, str]]:
    """This process's groups and all above them: each may have a limit of its own."""
    found: list[tuple[Path, str, str]] = []
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        inner = Path(path.lstrip("/"))
        if controllers == "":
            base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        found += [(base / part, *names) for part in (inner, *inner.parents)]
    return found


if sys.platform == "win32":

    def _system_memory() -> Memory:
        import ctypes

        class Status(ctypes.Structure):
            _fields_ = (
                ("length", ctypes.c_ulong),
                ("load", ctypes.c_ulong),
                ("total", ctypes.c_ulonglong),
                ("available", ctypes.c_ulonglong),
                ("rest", ctypes.c_ulonglong * 5),
            )

        status = Status(length=ctypes.sizeof(Status))
        if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
            return Memory(total=None, available=None, limit=None)
        return Memory(total=status.total, available=status.available, limit=None)
else:

    def _system_memory() -> Memory:
        total = None
        with suppress(OSError, ValueError):
            total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return Memory(total=total, available=None, limit=None)


def kv_bytes_per_token(metadata: Mapping[str, Any], *, bytes_per_value: int = 2) -> int | None:
    """Bytes of KV cache per token of context; None where the file does not say.

    Sums kv_heads x (key + value width) over the layers; f16 values unless told otherwise.
    Windowed layers are counted as if they kept everything: an upper bound.
    """
    arch = metadata.get("general.architecture")

    def value(name: str) -> Any:
        return metadata.get(f"{arch}.{name}")

    layers, width, heads = (
        value("block_count"),
        value("embedding_length"),
        value("attention.head_count"),
    )
    if not isinstance(layers, int) or not isinstance(width, int) or heads is None:
        return None
    heads_kv = value("attention.head_count_kv")
    per_layer_heads = _per_layer(heads, layers)
    per_layer_kv = _per_layer(heads if heads_kv is None else heads_kv, layers)
    if per_layer_heads is None or per_layer_kv is None:
        return None
    total = 0
    for query, kv in zip(per_layer_heads, per_layer_kv, strict=True):
        if query <= 0:
            continue
        default = width // query
        key_width, value_width = value("attention.key_length"), value("attention.value_length")
        key = key_width if isinstance(key_width, int) else default
        total += kv * (key + (value_width if isinstance(value_width, int) else key))
    return total * bytes_per_value


def _per_layer(value: Any, layers: int) -> list[int] | None:
    if isinstance(value, int):
        return [value] * layers if 0 <= layers <= 100_000 else None
    try:
        found = [int(v) for v in value]
    except (TypeError, ValueError):
        return None
    return found if len(found) == layers else None
