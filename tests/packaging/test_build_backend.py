"""The build takes its compiler from PyPI exactly where the system has none that will do."""

from __future__ import annotations

import importlib.util
import os
import shutil
import stat
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.delenv("INSULA_COMPILER", raising=False)
    monkeypatch.delenv("INSULA_ZIG_TARGET", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    spec = importlib.util.spec_from_file_location("backend", ROOT / "cmake" / "build_backend.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


posix = pytest.mark.skipif(os.name != "posix", reason="Windows has its compiler elsewhere")


@posix
def test_without_a_compiler_zig_is_required(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert backend.system_compiler() is None
    assert backend.ZIGLANG in backend.requirements()
    assert backend.ZIGLANG in backend.get_requires_for_build_wheel()
    # An installation that compiles nothing needs no compiler.
    settings = {"wheel.cmake": "false"}
    assert backend.ZIGLANG not in backend.get_requires_for_build_editable(settings)


@posix
def test_a_compiler_that_cannot_do_cxx20_does_not_count(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program(tmp_path / "c++", "#!/bin/sh\necho 'unknown option -std=c++20' >&2\nexit 1\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert backend.system_compiler() is None
    assert backend.use_zig()


@posix
def test_the_system_compiler_is_used_where_it_works(backend: ModuleType) -> None:
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        pytest.skip("no C++ compiler here")
    assert backend.system_compiler() is not None
    assert backend.ZIGLANG not in backend.requirements()


def test_the_choice_can_be_forced(backend: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSULA_COMPILER", "zig")
    assert backend.use_zig()
    monkeypatch.setenv("INSULA_COMPILER", "system")
    assert not backend.use_zig()
    monkeypatch.setenv("INSULA_COMPILER", "tcc")
    with pytest.raises(SystemExit, match="allowed: auto, system, zig"):
        backend.use_zig()


def test_the_target_names_a_baseline(backend: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unnamed target would be this machine's own CPU, and the wheel would run nowhere else."""
    if sys.platform.startswith("linux"):
        assert backend.zig_target().split("-")[1] == "linux"
    monkeypatch.setenv("INSULA_ZIG_TARGET", "x86_64-linux-gnu.2.28")
    assert backend.zig_target() == "x86_64-linux-gnu.2.28"


def test_the_environment_is_put_back(backend: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ziglang")
    monkeypatch.setenv("INSULA_COMPILER", "zig")
    monkeypatch.delenv("CMAKE_TOOLCHAIN_FILE", raising=False)
    with backend.compiler_environment():
        assert os.environ["CMAKE_TOOLCHAIN_FILE"].endswith("zig.cmake")
        assert Path(os.environ["INSULA_ZIG"]).exists()
    assert "CMAKE_TOOLCHAIN_FILE" not in os.environ
    assert "INSULA_ZIG" not in os.environ
