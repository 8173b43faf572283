"""The front door on llama.cpp: chosen by itself where native cannot, or by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from backends.xverse_checkpoint import write_xverse
from insula import LLM
from insula.engine.backends.llamacpp_tokenizer import LlamaCppTokenizer
from insula.errors import TokenizerError, UnsupportedError
from insula.tokenizer import Tokenizer

PLAIN = {"temperature": 0.0, "max_tokens": 8}


def test_auto_takes_llamacpp_and_the_report_says_why(xverse_path: Path) -> None:
    with LLM(xverse_path, n_ctx=128, n_threads=1) as llm:
        info = llm.model_info
        assert (info.engine, info.arch) == ("llamacpp", "xverse")
        assert "'xverse'" in info.engine_reason
        report = llm.generate("the inner", **PLAIN).report
        assert (report.engine, report.engine_reason) == ("llamacpp", info.engine_reason)


def test_speculation_is_not_its_own(xverse_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="llamacpp backend has no speculation"):
        LLM(xverse_path, n_ctx=128, speculate="ngram")


def test_everything_that_it_can(xverse_path: Path) -> None:
    with LLM(xverse_path, n_ctx=256, n_threads=1) as llm:
        whole = llm.generate("the inner", **PLAIN)
        chunks = list(llm.stream("the inner", **PLAIN))
        assert "".join(c.text for c in chunks) == whole.text
        assert chunks[-1].finish_reason == whole.finish_reason
        both = llm.generate(["the inner", "the outer"], **PLAIN)
        assert both[0].text == whole.text
        messages = [{"role": "user", "content": "hi"}]
        answer = llm.chat(messages, **PLAIN)
        with llm.chat_session(**PLAIN) as session:
            assert session.send("hi").text == answer.text
            second = session.send("and then?")
        assert second.report.cached_tokens > 0
        ids = llm.tokenize("the inner")
        assert llm.detokenize(ids) == "the inner"


def test_what_it_cannot_names_the_backend(xverse_path: Path) -> None:
    with LLM(xverse_path, n_ctx=128, n_threads=1) as llm:
        for call in (lambda: llm.logits([1, 2]), lambda: llm.perplexity("the inner thing")):
            with pytest.raises(UnsupportedError, match="llamacpp backend has no logits") as info:
                call()
            assert info.value.backend == "llamacpp"


def test_a_vocabulary_that_ours_lacks_is_read_by_llamacpps(
    xverse_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LLM(xverse_path, n_ctx=128, n_threads=1) as llm:
        expected = llm.generate("the inner né", **PLAIN)

    def refuse(metadata: object) -> Tokenizer:
        raise UnsupportedError("the pre-tokenizer 'new' is not known", backend="native")

    monkeypatch.setattr(Tokenizer, "from_metadata", refuse)
    with LLM(xverse_path, n_ctx=128, n_threads=1) as llm:
        assert isinstance(llm.tokenizer, LlamaCppTokenizer)
        answer = llm.generate("the inner né", **PLAIN)
        assert (answer.text, answer.token_ids) == (expected.text, expected.token_ids)
        assert llm.chat([{"role": "user", "content": "hi"}], **PLAIN).report.engine == "llamacpp"


def test_a_model_in_parts(tmp_path: Path) -> None:
    """Of an architecture that native lacks; llama.cpp finds the other parts by their names."""
    first = write_xverse(tmp_path / "split.gguf", tensors_per_file=9)
    assert first.name == "split-00001-of-00003.gguf"
    with LLM(first, n_ctx=64, n_threads=1) as llm:
        assert llm.model_info.engine == "llamacpp"
        assert len(llm.generate("the", **PLAIN).text) > 0


def test_a_vocabulary_that_lies_is_given_to_nobody(tmp_path: Path) -> None:
    path = write_xverse(tmp_path / "lies.gguf", eos_id=10**6)
    for engine in ("auto", "llamacpp"):
        with pytest.raises(TokenizerError):
            LLM(path, engine=engine)


def test_by_name_it_runs_what_native_runs_and_agrees(default_model: Path) -> None:
    """Teacher-forced: over the same positions both choose the same tokens but for near ties."""
    prompt = "The capital of France is"
    with LLM(default_model, engine="llamacpp", n_ctx=256, n_threads=1) as llm:
        assert llm.model_info.engine_reason == "asked for"
        theirs = llm.generate(prompt, temperature=0, max_tokens=24, logprobs=5)
    with LLM(default_model, engine="native", n_ctx=256) as llm:
        ids = llm.tokenize(prompt)
        logits = llm.logits([*ids, *theirs.token_ids[:-1]])[len(ids) - 1 :]
    assert theirs.logprobs is not None
    for row, token, score in zip(logits, theirs.token_ids, theirs.logprobs, strict=True):
        lead = row.max() - row[token]
        assert lead < 0.3, f"native prefers another token by {lead}"
        ours = row[token] - np.logaddexp.reduce(row.astype(np.float64))
        assert score.logprob == pytest.approx(ours, abs=0.15)
