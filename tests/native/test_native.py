"""The programs of native/tests, built with address and undefined-behaviour sanitizers."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from packaging_places import ROOT, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_native_tests_pass_under_sanitizers() -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("built with sanitizers on Linux only")
    if shutil.which("c++") is None:
        pytest.skip("no system compiler; zig brings no address sanitizer")
    tools = Path(sys.executable).parent
    build = ROOT / "build" / "sanitized"
    options = ("-DINSULA_PYTHON=OFF", "-DINSULA_SANITIZE=ON", "-DINSULA_UNITY=ON")
    run(tools / "cmake", "-S", ROOT, "-B", build, "-G", "Ninja", *options)
    run(tools / "cmake", "--build", build)
    said = run(tools / "ctest", "--test-dir", build, "--output-on-failure", "--no-tests=error")
    assert "100% tests passed" in said.stdout
