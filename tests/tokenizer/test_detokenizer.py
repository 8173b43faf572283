"""Streams of text: complete characters only, and joined the same as decoding at once."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from insula.errors import TokenizerError
from insula.tokenizer import Tokenizer
from tokenizer import small

EXTRA = [("<tool>", small.USER_DEFINED), ("pad", small.UNUSED), ("漢字", small.NORMAL)]


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Tokenizer]:
    """One small tokenizer of each family."""
    pieces = [(small.MARK, -1.0), (small.MARK + "a", -0.5), ("é", -1.0)]
    return {
        "bpe": Tokenizer.from_metadata(small.byte_level(extra=EXTRA)),
        "spm": Tokenizer.from_metadata(small.sentencepiece(pieces, extra=EXTRA)),
        "wordpiece": Tokenizer.from_metadata(small.wordpiece()),
    }


def stream(tokenizer: Tokenizer, ids: list[int], **options: bool) -> list[str]:
    """What each push and then the flush gives."""
    detokenizer = tokenizer.detokenizer(**options)
    return [*(detokenizer.push(i) for i in ids), detokenizer.flush()]


@pytest.mark.parametrize("family", ["bpe", "spm", "wordpiece"])
@given(data=st.data(), skip=st.booleans(), continues=st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_ids_stream_as_they_decode(
    family: str,
    data: st.DataObject,
    skip: bool,
    continues: bool,
    tokenizers: dict[str, Tokenizer],
) -> None:
    tokenizer = tokenizers[family]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40))
    options = {"skip_special": skip, "continues": continues}
    assert "".join(stream(tokenizer, ids, **options)) == tokenizer.decode(ids, **options)


@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe", "llama-spm", "gemma-4", "bert-bge"])
def test_real_vocabularies_stream_as_they_decode(name: str, vocabulary: Any) -> None:
    _, tokenizer = vocabulary(name)
    rng = random.Random(name)
    for _ in range(60):
        ids = [rng.randrange(tokenizer.vocab_size) for _ in range(30)]
        for skip in (False, True):
            pieces = stream(tokenizer, ids, skip_special=skip)
            assert "".join(pieces) == tokenizer.decode(ids, skip_special=skip)
    ids = tokenizer.encode("¡Ñandú, 中文 🦙‍🌫️ del Quijote!", add_special=False)
    pieces = stream(tokenizer, ids)
    assert "\ufffd" not in "".join(pieces) or name == "bert-bge"
    assert pieces[-1] == ""


def test_a_character_comes_out_when_its_last_byte_is_there(
    tokenizers: dict[str, Tokenizer],
) -> None:
    tokenizer = tokenizers["bpe"]
    llama = list("🦙".encode())
    assert stream(tokenizer, llama) == ["", "", "", "🦙", ""]
    assert stream(tokenizer, [ord("a"), *llama[:3]]) == ["a", "", "", "", "\ufffd"]
    assert stream(tokenizer, [llama[0], ord("b")]) == ["", "\ufffdb", ""]
    assert stream(tokenizer, [0x80, 0xFF]) == ["\ufffd", "\ufffd", ""]
    special = tokenizer.token_id("<|im_end|>")
    assert special is not None
    assert stream(tokenizer, [llama[0], special, llama[1]], skip_special=True)[-1] == "\ufffd"


def test_the_space_of_a_first_word(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["spm"]
    ids = tokenizer.encode("a a", add_special=False)
    assert stream(tokenizer, ids) == ["a", " a", ""]
    assert stream(tokenizer, ids, continues=True) == [" a", " a", ""]
    assert stream(tokenizer, [1, *ids], skip_special=True) == ["", "a", " a", ""]
    assert stream(tokenizer, [1, *ids]) == ["<s>", " a", " a", ""]


def test_bytes_of_tokens(tokenizers: dict[str, Tokenizer]) -> None:
    bpe, spm = tokenizers["bpe"], tokenizers["spm"]
    assert [bpe.token_bytes(i) for i in (0, 0x41, 0xFF)] == [b"\0", b"A", b"\xff"]
    assert bpe.token_bytes(bpe.token_id("<|im_end|>") or 0) == b"<|im_end|>"
    assert bpe.token_bytes(bpe.token_id("漢字") or 0) == "漢字".encode()  # not written as bytes
    assert bpe.token_bytes(bpe.token_id("pad") or 0) == b""
    assert spm.token_bytes(3 + 0xE4) == b"\xe4"
    assert spm.token_bytes(spm.token_id(small.MARK + "a") or 0) == b" a"
    assert bpe.token_id("nothing like it") is None


@pytest.mark.parametrize("bad", [-1, 10**6, 2**31, 2**63 - 1])
def test_ids_outside_the_vocabulary_are_errors(bad: int, tokenizers: dict[str, Tokenizer]) -> None:
    for tokenizer in tokenizers.values():
        for use in (tokenizer.token_bytes, tokenizer.is_special, tokenizer.detokenizer().push):
            with pytest.raises(TokenizerError, match=f"token id {bad} is not in the vocabulary of"):
                use(bad)
        with pytest.raises(TokenizerError, match="is not in the vocabulary of"):
            tokenizer.decode([0, bad])
        with pytest.raises(TokenizerError, match="is not in the vocabulary of"):
            tokenizer.decode([2**70])


def test_arrays_are_as_good_as_lists(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["bpe"]
    for kind in (np.int32, np.int64, np.uint16):
        ids = np.array(list(b"arrays"), kind)
        assert tokenizer.decode(ids) == "arrays"
        assert tokenizer.decode(ids[::2]) == "ary"
        assert "".join(stream(tokenizer, list(ids))) == "arrays"
    assert tokenizer.decode(np.array([], np.int32)) == tokenizer.decode([]) == ""
    for bad in ([1.5], ["a"], [[1, 2]], [True]):
        with pytest.raises(TokenizerError, match=r"must be one sequence of integers|is not in"):
            tokenizer.decode(bad)  # type: ignore[arg-type]
