"""`pip install .` on a machine with Python and no compiler: the build brings its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from packaging_places import ROOT, bare_environment, fresh_environment, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(sys.platform == "win32", reason="Windows takes Visual Studio's compiler"),
]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What git has, as it is in the working tree now."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    target = tmp_path / "clone"
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


def test_it_compiles_without_a_compiler(clone: Path, tmp_path: Path) -> None:
    python = fresh_environment(tmp_path / "venv")
    env = bare_environment(tmp_path / "home")
    quick = ("-C", "cmake.define.CMAKE_CXX_FLAGS_RELEASE=-O0")  # the wheel's test optimizes
    run(python, "-m", "pip", "install", "--retries", "8", "--no-deps", *quick, clone, env=env)
    # From another folder, so that the installed package is the one imported.
    said = run(python, "-c", "import insula._native as n; print(n.__file__)", env=env, cwd=tmp_path)
    assert "site-packages" in said.stdout
