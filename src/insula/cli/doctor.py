"""`insula doctor`: what this machine is, what Insula makes of it, and what would be faster."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from insula import __version__
from insula.cli.output import facts, say, say_json, size
from insula.hub import advice, catalog, places
from insula.hub.store import ModelStore
from insula.locale import text

#: Packages whose presence changes what Insula can do, and what they are for.
PACKAGES = ("numpy", "llguidance", "xllamacpp", "transformers", "torch")
BANDWIDTH_MB = 256
CPUINFO = Path("/proc/cpuinfo")
#: As Linux spells them, x86 and then ARM; the kernels use these or would gain by them.
FEATURES = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl"),
    *("avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"),
)


def doctor(
    fast: Annotated[bool, typer.Option("--fast", help=text("help.doctor_fast"))] = False,
    as_json: Annotated[bool, typer.Option("--json", help=text("help.json"))] = False,
) -> None:
    """The command."""
    found = examine(measure=not fast)
    if as_json:
        say_json(found)
        return
    say(facts(_rows(found)))
    for line in found["advice"]:
        say(f"- {line}")


def examine(*, measure: bool) -> dict[str, Any]:
    """Everything that is known, as plain data. `measure` takes about a second."""
    cpu = _cpu()
    store = ModelStore()
    memory = advice.memory()
    threads = cpu.get("threads")
    bandwidth: dict[str, float] | None = None
    if measure and isinstance(threads, int):
        bandwidth = {str(count): round(_bandwidth(count), 1) for count in sorted({1, threads})}
    try:
        free: int | None = shutil.disk_usage(_existing(store.root)).free
    except OSError:
        free = None
    found: dict[str, Any] = {
        "insula": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu": cpu,
        "bandwidth_gb_per_s": bandwidth,
        "memory": asdict(memory),
        "home": str(places.home()),
        "disk_free": free,
        "default_model_here": store.get(catalog.DEFAULT_MODEL) is not None,
        "packages": {name: _version(name) for name in PACKAGES},
        "backends": _backends(),
        "environment": {
            key: value for key, value in sorted(os.environ.items()) if key.startswith("INSULA_")
        },
    }
    found["advice"] = _advice(found)
    return found


def _cpu() -> dict[str, Any]:
    """The native core's view of the processor; what Python knows where there is no core."""
    known: dict[str, Any] = {"logical": os.cpu_count(), "features": _features(CPUINFO)}
    if hasattr(os, "sched_getaffinity"):
        known["allowed"] = len(os.sched_getaffinity(0))
    try:
        from insula import _native
    except ImportError as error:
        return {**known, "native": None, "why_not": str(error)}
    info = getattr(_native, "cpu_info", None)
    levels = getattr(_native, "isa_levels", None)
    if info is not None:
        known.update(info())
    known["isa_levels"] = list(levels()) if levels is not None else None
    return known


def _features(path: Path) -> list[str]:
    """What Linux says the processor has, of that which matters to kernels."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            has = set(value.split())
            return [feature for feature in FEATURES if feature in has]
    return []


def _bandwidth(threads: int) -> float:
    from insula import _native

    measured: float = _native.measure_bandwidth(threads, BANDWIDTH_MB)
    return measured


def _existing(path: Any) -> Any:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _backends() -> list[dict[str, Any]]:
    from insula.engine.backends.base import backends

    return [
        {"name": row.name, "title": row.title, "installed": row.installed, "why_not": row.why_not}
        for row in backends()
    ]


def _rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    cpu, memory = found["cpu"], found["memory"]
    unknown = text("doctor.unknown")

    def amount(count: int | None) -> str:
        return unknown if count is None else size(count)

    rows = [
        ("insula", f"{found['insula']} (Python {found['python']}, {found['platform']})"),
        (text("doctor.cpu"), str(cpu.get("name") or found["machine"])),
        (text("doctor.features"), " ".join(cpu["features"]) or unknown),
        (text("doctor.isa"), " ".join(cpu.get("isa_levels") or ()) or unknown),
        (text("doctor.threads"), _threads(cpu)),
    ]
    if found["bandwidth_gb_per_s"]:
        measured = [
            text("doctor.bandwidth_at", rate=rate, threads=count)
            for count, rate in found["bandwidth_gb_per_s"].items()
        ]
        rows.append((text("doctor.bandwidth"), ", ".join(measured)))
    rows.append(
        (
            text("doctor.memory"),
            text(
                "doctor.memory_of",
                available=amount(memory["available"]),
                total=amount(memory["total"]),
            ),
        )
    )
    if memory["limit"] is not None:
        rows.append((text("doctor.group"), text("doctor.group_limit", limit=size(memory["limit"]))))
    rows.append(
        (
            text("doctor.home"),
            text("doctor.free", path=found["home"], free=amount(found["disk_free"])),
        )
    )
    for row in found["backends"]:
        state = text("doctor.installed") if row["installed"] else row["why_not"]
        rows.append((f"{text('doctor.backend')} {row['name']}", f"{row['title']}: {state}"))
    packages = (f"{name} {version or '-'}" for name, version in found["packages"].items())
    rows.append((text("doctor.packages"), ", ".join(packages)))
    return rows


def _threads(cpu: dict[str, Any]) -> str:
    threads = cpu.get("threads")
    if threads is None:
        return text("doctor.unknown")
    why = text(
        "doctor.threads_why",
        logical=cpu.get("logical", "?"),
        allowed=cpu.get("allowed", "?"),
        physical=cpu.get("physical", "?"),
    )
    quota = cpu.get("quota")
    if quota:
        why += text("doctor.threads_quota", quota=f"{quota:g}")
    return f"{threads} ({why})"


def _advice(found: dict[str, Any]) -> list[str]:
    """What would be faster or is missing, most important first."""
    lines = []
    cpu = found["cpu"]
    if cpu.get("native", True) is None:
        lines.append(text("doctor.no_native", reason=cpu["why_not"]))
    forced = os.environ.get("INSULA_ISA")
    levels = cpu.get("isa_levels") or []
    best = levels[0] if levels else None  # the native core lists them best first
    if forced and best and forced != best:
        lines.append(text("doctor.forced_isa", forced=forced, best=best))
    elif best in ("scalar", "avx2"):
        lines.append(text("doctor.old_cpu", best=best))
    allowed, physical, threads = (cpu.get(key) for key in ("allowed", "physical", "threads"))
    quota = cpu.get("quota")
    if quota and isinstance(physical, int) and quota < physical:
        lines.append(text("doctor.quota_low", quota=f"{quota:g}", physical=physical))
    logical = cpu.get("logical")
    if isinstance(allowed, int) and isinstance(logical, int) and allowed < logical:
        lines.append(text("doctor.affinity_low", allowed=allowed, logical=logical))
    available = found["memory"]["available"]
    if available is not None and available < 1_000_000_000:
        lines.append(text("doctor.memory_low", available=size(available)))
    rates = found["bandwidth_gb_per_s"]
    if rates and threads:
        rate = max(rates.values())
        lines.append(text("doctor.decode_bound", rate=rate, tokens=f"{rate / 0.6:.0f}"))
    if not found["default_model_here"]:
        lines.append(text("doctor.no_default", name=catalog.DEFAULT_MODEL))
    if found["packages"]["xllamacpp"] is None:
        lines.append(text("doctor.no_llamacpp"))
    return lines
