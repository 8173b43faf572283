"""The check for weak symbols in instruction-set objects finds them, and can fail."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECK = ROOT / "cmake" / "check_isa_objects.py"

LEAKS = "inline int leak(int x) { return x + 1; }\nint (*offered())(int) { return &leak; }\n"
KEEPS = "static int keep(int x) { return x + 1; }\nint (*offered())(int) { return &keep; }\n"


def compiled(folder: Path, text: str) -> Path:
    if not sys.platform.startswith("linux") or shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler that writes ELF")
    source = folder / "isa.cpp"
    source.write_text(text)
    target = folder / "isa.o"
    subprocess.run(["c++", "-O0", "-c", str(source), "-o", str(target)], check=True)
    return target


def check(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CHECK), *(str(argument) for argument in arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_an_inline_function_is_found(tmp_path: Path) -> None:
    result = check(compiled(tmp_path, LEAKS))
    assert result.returncode == 1
    assert "leak" in result.stderr


def test_internal_linkage_is_fine(tmp_path: Path) -> None:
    result = check(compiled(tmp_path, KEEPS))
    assert result.returncode == 0, result.stderr


def test_nothing_to_read_is_not_success(tmp_path: Path) -> None:
    assert check(tmp_path).returncode == 2
    (tmp_path / "isa.o").write_bytes(b"not an object")
    assert check(tmp_path / "isa.o").returncode == 2


def test_every_file_has_its_row() -> None:
    """A file of native/isa without flags of its own would be compiled for the baseline."""
    table = (ROOT / "cmake" / "isa.cmake").read_text()
    for source in (ROOT / "native" / "isa").glob("*.cpp"):
        assert f'"{source.stem}|' in table
