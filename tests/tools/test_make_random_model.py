"""Random models for benchmarks are real models: they open, run, and stay finite."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from insula.models.load import open_model
from insula.ops.reference import forward

TOOL = Path(__file__).resolve().parents[2] / "tools" / "make_random_model.py"

#: The format that feed-forward matrices get.
FORMATS = {"Q4_K_M": "Q4_K", "Q8_0": "Q8_0", "Q4_0": "Q4_0", "Q6_K": "Q6_K", "F16": "F16"}


@pytest.mark.parametrize("format_", FORMATS)
def test_it_runs_and_keeps_its_size(format_, tiny_model, tmp_path):
    out = tmp_path / "random.gguf"
    shape = "--layers 9 --embd 256 --heads 8 --kv-heads 2 --ff 512 --context 512"
    done = subprocess.run(
        [sys.executable, TOOL, out, "--vocab", tiny_model, "--format", format_, *shape.split()],
        check=True,
        capture_output=True,
        text=True,
    )
    assert "random.gguf" in done.stdout
    with open_model(out) as model:
        assert model.gguf.tensors["blk.1.ffn_gate.weight"].type.name == FORMATS[format_]
        for name in ("blk.0.ffn_gate.weight", "blk.8.ffn_down.weight", "blk.3.attn_v.weight"):
            weight = model.gguf.dequantize(name)
            assert weight.std() * weight.shape[1] ** 0.5 == pytest.approx(1, abs=0.1)
        ids = model.tokenizer.encode("Why is the sky blue?")
        logits = forward(model.graph, model.gguf, ids)
        assert np.isfinite(logits).all()
        assert 0.3 < logits.std() < 3
        assert model.summary.quantization == format_


def test_the_same_seed_gives_the_same_file(tiny_model, tmp_path):
    shape = ["--layers", "1", "--embd", "256", "--heads", "4", "--kv-heads", "4", "--ff", "256"]
    made = []
    for name, seed in {"a": "1", "b": "1", "c": "2"}.items():
        subprocess.run(
            [sys.executable, TOOL, tmp_path / name, "--vocab", tiny_model, "--seed", seed, *shape],
            check=True,
            capture_output=True,
        )
        made.append((tmp_path / name).read_bytes())
    assert made[0] == made[1] != made[2]
