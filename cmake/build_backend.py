"""How the native code gets built: the PEP 517 backend, and the development build.

It owns one decision: which C++ compiler. The backend is scikit-build-core; this module only adds
`ziglang` (a whole C++20 toolchain as a wheel) to the build requirements where no compiler on PATH
can compile C++20, and points CMake at it. So an installation from source needs Python alone.

Environment:
    INSULA_COMPILER     system | zig | auto (default: the system's if it compiles C++20)
    INSULA_ZIG_TARGET   a zig target such as x86_64-linux-gnu.2.28 (default: this machine's)
    CXX                 respected, as CMake does

As a program, for the Makefile:
    build_backend.py requirements            what `develop` needs, one requirement a line
    build_backend.py develop BUILD_DIR       configure if needed, compile, put the module in src/
        --quiet                              say nothing if there is a module already and it works
"""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ZIGLANG = "ziglang==0.17.1"
PROBE = """
#include <bit>
#include <concepts>
#include <span>
template <std::integral T> T twice(T x) { return x + x; }
int main() { int a[2] = {1, 2}; return twice(std::span<int>(a)[0]) - std::popcount(3u); }
"""

Settings = dict[str, list[str] | str] | None


def system_compiler() -> list[str] | None:
    """The first of $CXX, c++, g++, clang++ that compiles and links a C++20 program."""
    candidates = [shlex.split(os.environ["CXX"])] if os.environ.get("CXX") else []
    candidates += [["c++"], ["g++"], ["clang++"]]
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "probe.cpp")
        source.write_text(PROBE)
        for command in candidates:
            if shutil.which(command[0]) is None:
                continue
            result = subprocess.run(
                [*command, "-std=c++20", str(source), "-o", str(Path(scratch, "probe"))],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
            )
            if result.returncode == 0:
                return command
    return None


def use_zig() -> bool:
    """Whether this build takes its compiler from PyPI."""
    wanted = os.environ.get("INSULA_COMPILER", "auto")
    if wanted not in ("auto", "system", "zig"):
        raise SystemExit(f"INSULA_COMPILER is {wanted!r}; allowed: auto, system, zig")
    if wanted != "auto":
        return wanted == "zig"
    # On Windows, CMake finds Visual Studio without PATH, and Python's own ABI is MSVC's.
    return os.name == "posix" and system_compiler() is None


def zig_target() -> str:
    """This machine as zig names it. Naming it keeps the CPU at the architecture's baseline."""
    if os.environ.get("INSULA_ZIG_TARGET"):
        return os.environ["INSULA_ZIG_TARGET"]
    machine = {"arm64": "aarch64", "AMD64": "x86_64"}.get(platform.machine(), platform.machine())
    if sys.platform == "darwin":
        return f"{machine}-macos"
    libc = "musl" if "musl" in (sysconfig.get_config_var("HOST_GNU_TYPE") or "") else "gnu"
    return f"{machine}-linux-{libc}"


@contextlib.contextmanager
def compiler_environment() -> Iterator[None]:
    """Point CMake at zig where it is used; CMake itself reads CMAKE_TOOLCHAIN_FILE."""
    changes: dict[str, str] = {}
    if use_zig():
        import ziglang  # type: ignore[import-not-found,unused-ignore]

        changes = {
            "INSULA_ZIG": str(Path(ziglang.__file__).with_name("zig")),
            "INSULA_ZIG_TARGET": zig_target(),
            "CMAKE_TOOLCHAIN_FILE": str(ROOT / "cmake" / "zig.cmake"),
        }
    else:
        command = system_compiler()
        if command is not None and command != ["c++"] and "CXX" not in os.environ:
            changes = {"CXX": shlex.join(command)}
    before = {key: os.environ.get(key) for key in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


# --- PEP 517 ---------------------------------------------------------------------------------


def compiles(settings: Settings) -> bool:
    """Whether a build with these settings runs CMake at all."""
    value = (settings or {}).get("wheel.cmake", "true")
    return str(value).lower() not in ("false", "0", "off")


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    import scikit_build_core.build as backend

    wanted = list(backend.get_requires_for_build_wheel(config_settings))
    return [*wanted, ZIGLANG] if compiles(config_settings) and use_zig() else wanted


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    import scikit_build_core.build as backend

    wanted = list(backend.get_requires_for_build_editable(config_settings))
    return [*wanted, ZIGLANG] if compiles(config_settings) and use_zig() else wanted


def get_requires_for_build_sdist(config_settings: Settings = None) -> list[str]:
    import scikit_build_core.build as backend

    return list(backend.get_requires_for_build_sdist(config_settings))


def build_sdist(sdist_directory: str, config_settings: Settings = None) -> str:
    import scikit_build_core.build as backend

    return str(backend.build_sdist(sdist_directory, config_settings))


def _build(kind: str, *arguments: Any) -> str:
    import scikit_build_core.build as backend

    build = getattr(backend, kind)
    if not compiles(arguments[1]):
        return str(build(*arguments))
    with compiler_environment():
        return str(build(*arguments))


def build_wheel(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    return _build("build_wheel", wheel_directory, config_settings, metadata_directory)


def build_editable(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    return _build("build_editable", wheel_directory, config_settings, metadata_directory)


# --- development -----------------------------------------------------------------------------


def requirements() -> list[str]:
    """What the development build needs in its environment."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    needed = [*project["build-system"]["requires"], "cmake>=3.25", "ninja>=1.11"]
    return [*needed, ZIGLANG] if use_zig() else needed


def build(cmake: str, build_dir: Path, *, quiet: bool) -> None:
    """Compile what changed."""
    command = [cmake, "--build", str(build_dir)]
    if not quiet or not any(build_dir.glob("_native*.so")):
        subprocess.run(command, check=True)
        return
    result = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if result.returncode != 0:
        print(result.stdout, file=sys.stderr)
        result.check_returncode()


def develop(build_dir: Path, *, quiet: bool = False) -> None:
    """Configure `build_dir` once, compile what changed, copy the module and its stub to src/."""
    tools = Path(sys.executable).parent
    cmake = str(tools / "cmake") if (tools / "cmake").exists() else "cmake"
    if not (build_dir / "build.ninja").exists():
        with compiler_environment():
            environment = os.environ | {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
            configure = [cmake, "-S", str(ROOT), "-B", str(build_dir), "-G", "Ninja"]
            configure.append(f"-DPython_EXECUTABLE={sys.executable}")
            subprocess.run(configure, check=True, stdout=subprocess.DEVNULL, env=environment)
    build(cmake, build_dir, quiet=quiet)
    for built in [*build_dir.glob("_native*.so"), *build_dir.glob("_native*.pyi")]:
        target = ROOT / "src" / "insula" / built.name
        if target.exists() and target.stat().st_mtime >= built.stat().st_mtime:
            continue
        # A running process keeps the module it mapped: replace the file, never write into it.
        fresh = target.with_name(target.name + ".new")
        shutil.copy2(built, fresh)
        fresh.replace(target)


def main(arguments: list[str]) -> int:
    try:
        match arguments:
            case ["requirements"]:
                print("\n".join(requirements()))
            case ["develop", build_dir]:
                develop(Path(build_dir))
            case ["develop", build_dir, "--quiet"]:
                develop(Path(build_dir), quiet=True)
            case _:
                print(__doc__, file=sys.stderr)
                return 2
    except subprocess.CalledProcessError as failure:
        return failure.returncode
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
