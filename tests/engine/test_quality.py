"""Perplexity, KL divergence and same top between two models, against formulas and known cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from golden.golden import load
from insula import LLM
from insula.engine.quality import builtin_text, compare, log_softmax
from insula.errors import ConfigError, UnsupportedError
from insula.formats.gguf import GGUFFile
from insula.formats.gguf_writer import GGUFWriter
from insula.models.load import open_model
from insula.models.quantize import quantize_file
from insula.ops.reference import forward

TEXT = "the island in the sea and the other on the shore of it; " * 12


def test_a_model_against_itself(tiny_model: Path) -> None:
    found = compare(tiny_model, tiny_model, TEXT, name="words", window=128)
    assert (found.kl_mean, found.kl_max, found.same_top) == (0.0, 0.0, 1.0)
    assert found.perplexity == found.perplexity_source
    assert found.text == "words"
    assert found.decode_tokens_per_second > 0
    with open_model(tiny_model) as model:
        n = len(model.tokenizer.encode(TEXT))
    assert found.tokens == n - -(-n // 128)  # every token but each window's first


def test_the_formulas_on_float32_logits(tmp_path: Path) -> None:
    """Two files of random weights, against the NumPy forward of both."""
    first = load("llama").write(tmp_path)
    quantize_file(first, tmp_path / "bf16.gguf", "BF16")
    quantize_file(first, tmp_path / "rough.gguf", "Q4_0")
    other = tmp_path / "rough.gguf"
    found = compare(first, other, TEXT, window=64)
    kl, nll = [], []
    with open_model(first) as p, open_model(other) as q:
        from insula.engine.importance import windows

        for ids in windows(p, TEXT, window=64):
            p_TV = log_softmax(forward(p.graph, p.gguf, ids))[:-1]
            q_TV = log_softmax(forward(q.graph, q.gguf, ids))[:-1]
            kl.append((np.exp(p_TV) * (p_TV - q_TV)).sum(axis=-1))
            nll.append(-q_TV[np.arange(len(ids) - 1), ids[1:]])
    assert found.tokens == sum(map(len, kl))
    assert found.kl_mean == pytest.approx(np.concatenate(kl).mean(), rel=0.05)
    assert found.kl_max == pytest.approx(np.concatenate(kl).max(), rel=0.2)
    assert found.perplexity == pytest.approx(np.exp(np.concatenate(nll).mean()), rel=0.01)
    nearer = compare(first, tmp_path / "bf16.gguf", TEXT, window=64)
    assert nearer.kl_mean < found.kl_mean / 100


def test_perplexity_is_the_engines(tiny_model: Path) -> None:
    with LLM(tiny_model) as llm:
        ids = llm.tokenizer.encode(TEXT)[:100]
        wanted = llm.perplexity(ids)
        text = llm.tokenizer.decode(ids)
        assert llm.tokenizer.encode(text) == ids
    assert compare(tiny_model, tiny_model, text).perplexity == pytest.approx(wanted, rel=1e-6)


def test_other_vocabularies_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    """The tiny model, and the same with 300 of its 320 tokens."""
    with GGUFFile.open(tiny_model) as file:
        writer = GGUFWriter(tmp_path / "fewer.gguf")
        for key in file.metadata:
            writer.add_raw(key, *file.raw_metadata(key))
        for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type"):
            writer.add(key, list(file.metadata[key])[:300])
        writer.add("llama.vocab_size", 300)
        for name in file.tensors:
            values = file.dequantize(name)
            large = name in ("token_embd.weight", "output.weight")
            writer.add_tensor(name, values[:300] if large else values)
        writer.write()
    with pytest.raises(ConfigError, match="one vocabulary"):
        compare(tiny_model, tmp_path / "fewer.gguf", TEXT)


def test_the_builtin_text_is_there() -> None:
    text = builtin_text()
    assert "En un lugar de la Mancha" in text
    assert "def " in text
    assert len(text) > 5000


def test_models_that_give_no_logits_are_refused(tmp_path: Path) -> None:
    path = load("bert").write(tmp_path)
    with pytest.raises(UnsupportedError, match="gives no logits"):
        compare(path, path, "the island")


def test_a_model_of_few_positions(tmp_path: Path) -> None:
    """GPT-2's learned positions end with its context: what is timed lies within them."""
    path = load("gpt2").write(tmp_path)
    found = compare(path, path, "the island " * 300)
    assert found.window == 80
    assert found.kl_mean == 0
    assert found.decode_tokens_per_second > 0
