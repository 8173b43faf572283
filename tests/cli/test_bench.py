"""`insula bench` and `insula quantize` on the tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import numpy as np
import pytest

from cli.conftest import failed
from insula.formats.gguf_writer import GGUFWriter


def test_bench(insula, tiny):
    options = ("-p", "24", "-n", "5", "-r", "2")
    done = insula("bench", str(tiny), *options, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["repetitions"] == 2
    assert found["engine"] == "native"
    for key in ("prefill_tokens_per_second", "decode_tokens_per_second"):
        assert 0 < found[key]["min"] <= found[key]["median"] <= found[key]["max"]
    assert "tokens/s" in insula("bench", str(tiny), *options).stdout
    assert "MEDIANA" in insula("bench", str(tiny), *options, INSULA_LANG="es").stdout


def test_no_cache_helps_a_bench(insula, tiny, monkeypatch):
    from insula.cli import bench

    kept = []
    measure = bench.measure

    def spy(*args):
        kept.extend(measure(*args))
        return kept

    monkeypatch.setattr(bench, "measure", spy)
    insula("bench", str(tiny), "-p", "70", "-n", "3", "-r", "2", "--json")
    assert [report.cached_tokens for report in kept] == [0, 0]
    assert [report.completion_tokens for report in kept] == [3, 3]


def test_quantize(insula, tiny, tmp_path):
    done = insula("quantize", str(tiny), "small.gguf", "Q8_0", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["size"] == (tmp_path / "small.gguf").stat().st_size < tiny.stat().st_size
    shown = json.loads(insula("show", "small.gguf", "--json").stdout)
    assert shown["quantization"] == "Q8_0"
    assert insula("run", "small.gguf", "hello", "-n", "3").returncode == 0


def test_quantize_refuses_what_would_lose_something(insula, tiny, tmp_path):
    (tmp_path / "there.gguf").write_text("precious")
    assert "--force" in failed(insula("quantize", str(tiny), "there.gguf", "Q8_0"), 2)
    assert (tmp_path / "there.gguf").read_text() == "precious"
    assert insula("quantize", str(tiny), "there.gguf", "Q8_0", "--force").returncode == 0
    failed(insula("quantize", str(tiny), str(tiny), "Q8_0", "--force"), 2)
    failed(insula("quantize", str(tiny), str(tmp_path), "Q8_0"), 2)
    assert "Q9_9" in failed(insula("quantize", str(tiny), "x.gguf", "Q9_9"), 2)
    assert not (tmp_path / "x.gguf").exists()


def test_bench_beyond_the_context_says_so_at_once(insula, tiny):
    line = failed(insula("bench", str(tiny), "-p", "600", "-n", "10"), 2)
    assert "512" in line
    assert "610" in line
    assert "--threads" in failed(insula("bench", str(tiny), "--threads", "0"), 2)


def test_a_format_that_there_is_not_in_spanish(insula, tiny):
    line = failed(insula("quantize", str(tiny), "x.gguf", "Q9_9", LANG="es_ES.UTF-8"), 2)
    assert "no existe el formato 'Q9_9'; existen: F32" in line


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_sigterm_leaves_nothing_half_written(env, tmp_path):
    source = tmp_path / "large.gguf"
    writer = GGUFWriter(source)
    writer.add("general.architecture", "llama")
    rows = np.zeros((1 << 14, 1 << 10), np.float32)
    for at in range(4):
        writer.add_tensor(f"blk.{at}.ffn_up.weight", rows)
    writer.write()
    folder = tmp_path / "out"
    folder.mkdir()
    command = [sys.executable, "-m", "insula", "quantize", str(source), str(folder / "o.gguf")]
    with subprocess.Popen([*command, "Q6_K"], env=env, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 30
        while not list(folder.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.002)
        process.terminate()
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (143, b"")
    assert list(folder.iterdir()) == []
