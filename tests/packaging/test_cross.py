"""The native core for other systems: compiled for two, compiled and run for ARM under qemu."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from packaging_places import ROOT, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

#: What is compiled and not run need not be optimized.
QUICK = "-DCMAKE_CXX_FLAGS_RELEASE=-O0"


def build(target: str, folder: Path, *arguments: str) -> Path:
    """Compile the core and native/tests for a target of zig's; returns the build folder."""
    ziglang = pytest.importorskip("ziglang")
    cmake = Path(sys.executable).with_name("cmake")
    env = os.environ | {
        "INSULA_ZIG": str(Path(ziglang.__file__).with_name("zig")),
        "INSULA_ZIG_TARGET": target,
        "PATH": f"{cmake.parent}{os.pathsep}{os.environ['PATH']}",
    }
    toolchain = f"-DCMAKE_TOOLCHAIN_FILE={ROOT / 'cmake' / 'zig.cmake'}"
    configure = (cmake, "-S", ROOT, "-B", folder, "-G", "Ninja", "-DINSULA_PYTHON=OFF", toolchain)
    run(*configure, *arguments, env=env)
    run(cmake, "--build", folder, env=env)
    return folder


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


def test_arm64_passes_its_tests_under_qemu(tmp_path: Path) -> None:
    qemu = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if qemu is None:
        pytest.skip("qemu-user is not installed (Debian: qemu-user-static)")
    # musl, so that the programs are static and need no ARM root file system.
    emulator = f"-DCMAKE_CROSSCOMPILING_EMULATOR={qemu}"
    built = build("aarch64-linux-musl", tmp_path / "build", emulator)
    ctest = Path(sys.executable).with_name("ctest")
    said = run(ctest, "--test-dir", built, "--output-on-failure", "--no-tests=error")
    assert "100% tests passed" in said.stdout
    shown = run(ctest, "--test-dir", built, "-V", "-R", "kernels_test")
    assert "neon" in shown.stdout, "the NEON level did not run"
