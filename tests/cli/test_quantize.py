"""insula quantize: importance, the quality report and its gate, as a person meets them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from cli.conftest import failed
from insula.formats.gguf import GGUFFile
from insula.models.importance import read_importance

TEXT = "the island in the sea and the other on the shore of it; " * 30


def leftovers(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir() if p.name not in ("user", "home")}


def test_a_report(insula, tiny, tmp_path):
    done = insula("quantize", str(tiny), "out.gguf", "Q8_0", "--report")
    assert done.returncode == 0, done.stderr
    assert "KL divergence" in done.stdout
    assert "same top token" in done.stdout
    (tmp_path / "text.txt").write_text(TEXT)
    args = ["quantize", str(tiny), "again.gguf", "Q8_0", "--report", "--text", "text.txt", "--json"]
    found = json.loads(insula(*args).stdout)
    quality = found["quality"]
    assert quality["text"] == "text.txt"
    assert 0 < quality["kl_mean"] < 0.01
    assert 0.9 < quality["same_top"] <= 1
    assert abs(quality["perplexity"] / quality["perplexity_source"] - 1) < 0.01
    assert quality["decode_tokens_per_second"] > 0
    assert found["size"] == (tmp_path / "again.gguf").stat().st_size
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "out.gguf").read_bytes()


def test_the_gate_lets_pass_what_is_good_enough(insula, tiny, tmp_path):
    done = insula("quantize", str(tiny), "out.gguf", "Q8_0", "--max-kl", "0.01")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.gguf").exists()


def test_what_fails_the_gate_is_not_left_behind(insula, tiny, tmp_path):
    line = failed(insula("quantize", str(tiny), "out.gguf", "Q2_K", "--max-kl", "0.0001"), 3)
    assert "out.gguf was not written" in line
    assert "--max-kl allows 0.0001" in line
    assert leftovers(tmp_path) == set()
    spanish = failed(
        insula("quantize", str(tiny), "out.gguf", "Q2_K", "--max-kl", "0.0001", LANG="es"), 3
    )
    assert "no se escribió" in spanish


def test_what_fails_the_gate_leaves_the_old_file_as_it_was(insula, tiny, tmp_path):
    (tmp_path / "out.gguf").write_text("mine")
    args = ["quantize", str(tiny), "out.gguf", "Q2_K", "--max-kl", "0", "--force", "--json"]
    failed(insula(*args), 3)
    assert (tmp_path / "out.gguf").read_text() == "mine"
    assert leftovers(tmp_path) == {"out.gguf"}


def test_importance_from_a_text_is_kept_and_used_again(insula, tiny, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    done = insula(
        "quantize", str(tiny), "a.gguf", "IQ4_NL", "--imatrix", "text.txt",
        "--save-imatrix", "im.gguf",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "importance from text.txt" in done.stdout
    assert "tens of thousands" in done.stdout  # the text is short
    kept = read_importance(tmp_path / "im.gguf")
    assert kept.datasets == ("text.txt",)
    done = insula("quantize", str(tiny), "b.gguf", "IQ4_NL", "--imatrix", "im.gguf")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    insula("quantize", str(tiny), "plain.gguf", "IQ4_NL")
    name = "blk.0.ffn_up.weight"
    weights = kept.weights()[name][0]
    values = {}
    for path in (tiny, tmp_path / "a.gguf", tmp_path / "plain.gguf"):
        with GGUFFile.open(path) as file:
            values[path.stem] = file.dequantize(name)
    loss = [(np.square(values[x] - values[tiny.stem]) * weights).sum() for x in ("a", "plain")]
    assert loss[0] < loss[1]


def test_measuring_on_the_text_of_the_matrix_is_said(insula, tiny, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    done = insula(
        "quantize", str(tiny), "a.gguf", "Q4_0", "--imatrix", "text.txt", "--report",
        "--text", "text.txt",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "flatters" in done.stdout


def test_a_text_that_is_too_long_is_said(insula, tiny, tmp_path):
    """35 windows for the report, of which it reads 32."""
    (tmp_path / "long.txt").write_text("the island " * 3000)
    done = insula("quantize", str(tiny), "a.gguf", "Q4_0", "--report", "--text", "long.txt")
    assert done.returncode == 0, done.stderr
    assert "long.txt is longer than 32 windows of 512 tokens" in done.stdout


def test_wrong_use(insula, tiny, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "latin.txt").write_bytes("año ".encode("latin-1") * 9)
    (tmp_path / "noise.dat").write_bytes(b"\0\1\2\3" * 9)
    base = ["quantize", str(tiny), "out.gguf", "Q4_0"]
    for args, code, says in (
        (["--max-kl", "-1"], 2, "from 0 on"),
        (["--max-kl", "nan"], 2, "from 0 on"),
        (["--max-kl", "x"], 2, "number"),
        (["--text", "text.txt"], 2, "--report"),
        (["--save-imatrix", "im.gguf"], 2, "--imatrix"),
        (["--imatrix", "gone.txt"], 1, "gone.txt"),
        (["--imatrix", "latin.txt"], 2, "UTF-8"),
        (["--imatrix", "noise.dat"], 1, "neither a text nor"),
        (["--imatrix", str(tiny)], 1, "not an importance matrix"),
        (["--imatrix", "noise.dat", "--save-imatrix", "x.gguf"], 2, "already"),
        (["--report", "--text", "gone.txt"], 1, "gone.txt"),
        (["--report", "--text", "latin.txt"], 2, "UTF-8"),
    ):
        assert says in failed(insula(*base, *args), code), args
    assert leftovers(tmp_path) == {"text.txt", "latin.txt", "noise.dat"}


def test_another_models_matrix(insula, tiny, tmp_path):
    from insula.models.importance import Importance

    one = Importance(
        squares={"blk.9.attn_q.weight": np.ones((1, 64))},
        counts={"blk.9.attn_q.weight": np.ones(1)},
    )
    one.save(tmp_path / "im.gguf")
    line = failed(insula("quantize", str(tiny), "o.gguf", "Q4_0", "--imatrix", "im.gguf"), 2)
    assert "blk.9.attn_q.weight" in line
