"""Acceptance: the wheel alone, in a fresh environment on a PATH without a compiler, answers."""

from __future__ import annotations

import platform
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


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    for tool in ("auditwheel", "ziglang", "scikit_build_core"):
        pytest.importorskip(tool)
    run(sys.executable, ROOT / "cmake" / "make_wheel.py", tmp_path / "dist")
    (made,) = (tmp_path / "dist").glob("*.whl")
    return made


def holds_the_package_and_nothing_else(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    assert archive.testzip() is None
    names = archive.namelist()
    version = f"{sys.version_info.major}{sys.version_info.minor}"
    modules = [name for name in names if name.endswith(".so")]
    assert modules == [f"insula/_native.cpython-{version}-{platform.machine()}-linux-gnu.so"]
    assert {"insula/py.typed", "insula/_native.pyi", "insula/cli/main.py"} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"insula"}


# One test, since it makes one wheel: it takes minutes.
def test_a_stranger_gets_an_answer(wheel: Path, tmp_path: Path) -> None:
    tag = re.search(r"manylinux_2_(\d+)_", wheel.name)
    assert tag is not None, wheel.name
    assert int(tag[1]) <= 28
    holds_the_package_and_nothing_else(wheel)

    python = fresh_environment(tmp_path / "venv")
    env = bare_environment(tmp_path / "home")
    run(python, "-m", "pip", "install", "--retries", "8", wheel, env=env)
    insula = python.with_name("insula")
    question = ("Why is the sky blue?", "--temperature", "0", "--max-tokens", "60")
    answer = run(insula, "run", "smollm2:135m", *question, env=env, cwd=tmp_path)
    assert "scatter" in answer.stdout
    again = run(insula, "run", "smollm2:135m", *question, env=env, cwd=tmp_path)
    assert again.stdout == answer.stdout
    assert "smollm2" in run(insula, "list", "--json", env=env, cwd=tmp_path).stdout
