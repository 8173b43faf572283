"""The peers' own environments, below build/bench/: never the project's.

Wheels share one. llama-cpp-python is compiled for this processor, an environment for each way,
and only where somebody asks: it takes many minutes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from pathlib import Path

from machine import has_flag

FOLDER = Path(__file__).resolve().parent.parent / "build" / "bench"

#: Engines that have wheels, and what to ask pip for.
WHEELS = {
    "xllamacpp": ("xllamacpp>=2026.10",),
    "openvino-genai": ("openvino-genai>=2026.1", "numpy>=1.26"),
    "gpt4all": ("gpt4all>=2.8.2",),
}

_AVX2 = "-DGGML_NATIVE=OFF -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON"
_AVX512 = "".join(f" -DGGML_AVX512{part}=ON" for part in ("", "_VBMI", "_VNNI", "_BF16"))
#: Ways to build llama.cpp. Native takes AMX where the processor has it.
BUILDS = {"native": "-DGGML_NATIVE=ON", "no-amx": _AVX2 + _AVX512, "avx2": _AVX2}


class NotInstalledError(Exception):
    """The message says why."""


def builds_here() -> list[str]:
    """The builds that differ on this processor."""
    if not has_flag("avx2"):
        return ["native"]
    return ["native", *(["no-amx"] if has_flag("amx_int8") else []), "avx2"]


def python_of(peer: str, variant: str, *, install: bool, say: Callable[[str], None]) -> Path:
    """The interpreter that has the peer. NotInstalledError where it cannot be had."""
    folder = FOLDER / (f"{peer}-{variant}" if variant else "peers")
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if python.exists() and _has(python, peer):
        return python
    if not install:
        raise NotInstalledError("not installed")
    if not python.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        venv.create(folder, with_pip=True)
    say(
        f"installing {peer} {variant}".rstrip()
        + f" into {folder.relative_to(FOLDER.parent.parent)}"
    )
    if variant:
        options = f"{BUILDS[variant]} -DLLAMA_BUILD_TOOLS=OFF -DLLAVA_BUILD=OFF"
        _pip(python, ["--no-binary", peer, peer], {"CMAKE_ARGS": options})
    else:
        _pip(python, ["--only-binary", ":all:", *WHEELS[peer]], {})
    return python


def _has(python: Path, package: str) -> bool:
    program = f"from importlib.metadata import version; version({package!r})"
    done = subprocess.run([python, "-c", program], capture_output=True, check=False)
    return done.returncode == 0


def _pip(python: Path, arguments: Sequence[str], environment: dict[str, str]) -> None:
    command = [python, "-m", "pip", "--disable-pip-version-check", "install", "-q", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["pip failed"]
        wrong = next((line for line in lines if line.startswith("ERROR")), lines[-1])
        raise NotInstalledError(f"not installed: {wrong.removeprefix('ERROR: ')}")


def own_python() -> Path:
    """Insula's."""
    return Path(sys.executable)
