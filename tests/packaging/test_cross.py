"""The native core for other systems: compiled for three, compiled and run for ARM under qemu."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from packaging_places import ROOT, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

#: What is compiled and not run need not be optimized.
QUICK = "-DCMAKE_CXX_FLAGS_RELEASE=-O0"
ARM_LEVELS = {"scalar", "neon", "neon_dotprod", "neon_i8mm"}


def build(system: str, folder: Path, *arguments: str, target: str = "all") -> Path:
    """Compile the core and native/tests for a system as zig names it; returns the build folder."""
    ziglang = pytest.importorskip("ziglang")
    cmake = Path(sys.executable).with_name("cmake")
    env = os.environ | {
        "INSULA_ZIG": str(Path(ziglang.__file__).with_name("zig")),
        "INSULA_ZIG_TARGET": system,
        "PATH": f"{cmake.parent}{os.pathsep}{os.environ['PATH']}",
    }
    toolchain = f"-DCMAKE_TOOLCHAIN_FILE={ROOT / 'cmake' / 'zig.cmake'}"
    configure = (cmake, "-S", ROOT, "-B", folder, "-G", "Ninja", toolchain)
    configure += ("-DINSULA_PYTHON=OFF", "-DINSULA_UNITY=ON")
    run(*configure, *arguments, env=env)
    run(cmake, "--build", folder, "--target", target, env=env)
    return folder


def levels(built: Path) -> set[str]:
    """The files of native/isa that were compiled: one that the compiler cannot is left out."""
    objects = (built / "CMakeFiles" / "insula_core.dir" / "native" / "isa").iterdir()
    return {path.name.partition(".")[0] for path in objects}


def test_windows_x86_64_compiles(tmp_path: Path) -> None:
    built = build("x86_64-windows-gnu", tmp_path / "build", QUICK)
    programs = list(built.glob("*.exe"))
    assert programs
    for program in programs:
        assert program.read_bytes()[:2] == b"MZ"


def test_macos_arm64_compiles(tmp_path: Path) -> None:
    built = build("aarch64-macos", tmp_path / "build", QUICK)
    program = built / "kernels_test"
    # Mach-O, 64 bit, little endian; CPU type ARM64.
    assert program.read_bytes()[:8] == bytes.fromhex("cffaedfe0c000001")
    assert levels(built) == ARM_LEVELS


def test_windows_arm64_core_compiles(tmp_path: Path) -> None:
    # The library alone: to link programs zig would first build a C library for this system too.
    library = "-DCMAKE_TRY_COMPILE_TARGET_TYPE=STATIC_LIBRARY"
    built = build("aarch64-windows-gnu", tmp_path / "build", QUICK, library, target="insula_core")
    assert levels(built) == ARM_LEVELS


def test_arm64_passes_its_tests_under_qemu(tmp_path: Path) -> None:
    qemu = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if qemu is None:
        pytest.skip("qemu-user is not installed (Debian: qemu-user-static)")
    # musl, so that the programs are static and need no ARM root file system.
    emulator = f"-DCMAKE_CROSSCOMPILING_EMULATOR={qemu};-cpu;max"
    built = build("aarch64-linux-musl", tmp_path / "build", emulator)
    assert levels(built) == ARM_LEVELS
    run(sys.executable, ROOT / "cmake" / "check_isa_objects.py", built)

    ctest = Path(sys.executable).with_name("ctest")
    said = run(ctest, "--test-dir", built, "-V", "--no-tests=error").stdout
    assert "100% tests passed" in said
    assert "default level: neon-i8mm" in said
    for level in ("neon-i8mm", "neon-dotprod", "neon", "scalar"):
        assert f"level {level}: tested" in said

    def kernels_test(cpu: str, level: str) -> subprocess.CompletedProcess[str]:
        command = [qemu, "-cpu", cpu, str(built / "kernels_test"), level]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    # A processor without the extensions: the best that it has by default, the others refused.
    old = kernels_test("cortex-a72", "neon-dotprod")
    assert old.returncode == 2, old.stdout + old.stderr
    assert "default level: neon\n" in old.stdout
    assert "'neon-dotprod' needs the extension dotprod" in old.stdout
    assert "available here: neon, scalar" in old.stdout
    assert kernels_test("cortex-a72", "neon").returncode == 0
    between = kernels_test("cortex-a76", "neon-i8mm")
    assert between.returncode == 2, between.stdout + between.stderr
    assert "default level: neon-dotprod\n" in between.stdout
    assert "'neon-i8mm' needs the extensions dotprod and i8mm" in between.stdout
    assert kernels_test("cortex-a76", "neon-dotprod").returncode == 0
