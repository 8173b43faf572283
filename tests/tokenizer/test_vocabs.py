"""Real vocabularies give exactly the ids that llama.cpp's tests expect (shared/data/vocabs)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from insula.tokenizer import Tokenizer

NAMES = ["bert-bge", "falcon", "gemma-4", "gpt-2", "llama-bpe", "llama-spm", "phi-3", "qwen2"]


def cases(folder: Path, name: str) -> list[tuple[str, list[int]]]:
    """Texts with the ids they must have, without begin and end tokens."""
    base = folder / "data/vocabs" / f"ggml-vocab-{name}.gguf"
    texts = base.with_suffix(".gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = base.with_suffix(".gguf.out").read_text().split("\n")
    return [
        (text, [int(i) for i in line.split()]) for text, line in zip(texts, lines, strict=False)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_those_of_llama_cpp(name: str, shared: Path, vocabulary: Any) -> None:
    _, tokenizer = vocabulary(name)
    found = cases(shared, name)
    assert len(found) >= 46
    assert sum(len(ids) for _, ids in found) > 300
    for text, ids in found:
        assert tokenizer.encode(text, add_special=False) == ids, text


def test_no_vocabulary_of_the_folder_is_left_out(shared: Path) -> None:
    files = sorted((shared / "data/vocabs").glob("*.gguf"))
    assert [file.name for file in files] == [f"ggml-vocab-{name}.gguf" for name in NAMES]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "bert-bge"])
def test_decoding_gives_the_text_back(name: str, shared: Path, vocabulary: Any) -> None:
    tokenizer: Tokenizer
    _, tokenizer = vocabulary(name)
    for text, _ in cases(shared, name):
        assert tokenizer.decode(tokenizer.encode(text), skip_special=True) == text
        ids = tokenizer.encode(text, add_special=False)
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    ("name", "model", "pre", "bos", "eos", "ends", "add_bos"),
    [
        ("bert-bge", "wordpiece", None, 101, None, [], True),
        ("falcon", "bpe", "falcon", 11, 11, [11], False),
        ("gemma-4", "bpe", "gemma4", 2, 1, [1, 50, 106], True),
        ("gpt-2", "bpe", "gpt-2", 50256, 50256, [50256], False),
        ("llama-bpe", "bpe", "llama-bpe", 128000, 128001, [128001, 128009], True),
        ("llama-spm", "spm", None, 1, 2, [2], True),
        ("phi-3", "spm", None, 1, 32000, [2, 32000, 32007], True),
        ("qwen2", "bpe", "qwen2", 151643, 151643, [151643, 151645], False),
    ],
)
def test_what_a_vocabulary_says_of_itself(
    name: str,
    model: str,
    pre: str | None,
    bos: int,
    eos: int | None,
    ends: list[int],
    add_bos: bool,
    vocabulary: Any,
) -> None:
    _, tokenizer = vocabulary(name)
    assert (tokenizer.model, tokenizer.pre) == (model, pre)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.add_bos) == (bos, eos, add_bos)
    assert tokenizer.eog_ids == frozenset(ends)
    assert tokenizer.encode("")[: int(add_bos)] == [bos][: int(add_bos)]


def test_bert_is_put_between_its_tokens(vocabulary: Any) -> None:
    _, tokenizer = vocabulary("bert-bge")
    assert tokenizer.encode("Hello world!") == [101, 7592, 2088, 999, 102]
    assert tokenizer.decode([101, 7592, 2088, 999, 102], skip_special=True) == "hello world !"
