"""Acceptance: the wheel alone, in a fresh environment on a PATH without a compiler, answers."""

from __future__ import annotations

import re
import sys
import zipfile
from pathlib import Path

import pytest

from packaging_places import ROOT, bare_environment, fresh_environment, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="makes manylinux wheels"),
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for tool in ("auditwheel", "ziglang", "scikit_build_core"):
        pytest.importorskip(tool)
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, ROOT / "cmake" / "make_wheel.py", out)
    (made,) = out.glob("*.whl")
    return made


def test_it_runs_on_any_linux_since_glibc_2_28(wheel: Path) -> None:
    tag = re.search(r"manylinux_2_(\d+)_", wheel.name)
    assert tag is not None, wheel.name
    assert int(tag[1]) <= 28


def test_it_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    version = f"{sys.version_info.major}{sys.version_info.minor}"
    modules = [name for name in names if name.endswith(".so")]
    assert modules == [f"insula/_native.cpython-{version}-x86_64-linux-gnu.so"]
    assert {"insula/py.typed", "insula/_native.pyi", "insula/cli/main.py"} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0].split("-")[0] for name in names} <= {"insula", "insula.libs"}
    assert zipfile.ZipFile(wheel).testzip() is None


def test_a_stranger_gets_an_answer(wheel: Path, tmp_path: Path) -> None:
    python = fresh_environment(tmp_path / "venv")
    env = bare_environment(tmp_path / "home")
    run(python, "-m", "pip", "install", "--retries", "8", wheel, env=env)
    insula = python.with_name("insula")
    answer = run(insula, "run", "smollm2:135m", "What is the capital of France?", env=env)
    assert "Paris" in answer.stdout
    again = run(insula, "list", "--json", env=env)
    assert "smollm2" in again.stdout
