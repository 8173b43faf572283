"""Each libFuzzer target of native/fuzz, with ASan and UBSan, for FUZZ_SECONDS (default 60).

A crash leaves its input in build/fuzz-findings and its path in the failure's message. Seeds are
read from native/fuzz/seeds/NAME where that folder exists.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from packaging_places import ROOT, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SOURCES = sorted((ROOT / "native" / "fuzz").glob("*.cpp"))
BUILD = ROOT / "build" / "fuzz"
SECONDS = int(os.environ.get("FUZZ_SECONDS", "60"))


@pytest.fixture(scope="session")
def fuzzers() -> Path:
    if shutil.which("clang++") is None:
        pytest.skip("the fuzzers need clang (Debian: clang, libclang-rt-dev)")
    tools = Path(sys.executable).parent
    BUILD.parent.mkdir(exist_ok=True)
    options = ("-DINSULA_PYTHON=OFF", "-DINSULA_FUZZ=ON", "-DCMAKE_CXX_COMPILER=clang++")
    # Several test processes may want it at once; one configures and compiles.
    command = f'"{tools}/cmake" -S "{ROOT}" -B "{BUILD}" -G Ninja {" ".join(options)} && '
    command += f'"{tools}/cmake" --build "{BUILD}"'
    if shutil.which("flock") is None:
        run("sh", "-c", command)
    else:
        run("flock", BUILD.parent / ".fuzz-lock", "sh", "-c", command)
    return BUILD


def test_there_are_targets() -> None:
    assert SOURCES


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_fuzz(source: Path, fuzzers: Path, tmp_path: Path) -> None:
    findings = ROOT / "build" / "fuzz-findings"
    findings.mkdir(parents=True, exist_ok=True)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    seeds = ROOT / "native" / "fuzz" / "seeds" / source.stem
    options = [f"-max_total_time={SECONDS}", "-timeout=10", "-rss_limit_mb=2048", "-seed=1"]
    options += [f"-artifact_prefix={findings}/{source.stem}-", "-print_final_stats=1"]
    folders = [str(corpus), *([str(seeds)] if seeds.is_dir() else [])]
    result = subprocess.run(
        [str(fuzzers / source.stem), *options, *folders],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    assert result.returncode == 0, result.stderr[-6000:]
    executed = [line for line in result.stderr.splitlines() if "number_of_executed_units" in line]
    assert executed, result.stderr[-2000:]
    # A target that rejects everything at once, or hangs, would say nothing about the parser.
    assert int(executed[0].split()[-1]) > 100 * SECONDS
