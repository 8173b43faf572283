"""Vocabularies that lie: each is one clear error, and never a crash (FAULTS.md, row 3)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from insula.errors import InsulaError, TokenizerError, UnsupportedError
from insula.formats.string_array import StringArray
from insula.tokenizer import Tokenizer
from tokenizer import small

P = small.P


def broken(**changes: Any) -> dict[str, Any]:
    """A good vocabulary with these keys changed, or removed where the value is None."""
    metadata = small.byte_level()
    for key, value in changes.items():
        metadata[P + key] = value
        if value is None:
            del metadata[P + key]
    return metadata


TOKENS = small.byte_level()[P + "tokens"]
N = len(TOKENS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "no tokenizer.ggml.model"),
        ({"model": 7}, "tokenizer.ggml.model is int; it must be a string"),
        ({"model": ["gpt2"]}, "tokenizer.ggml.model is list"),
        ({"pre": 3}, "tokenizer.ggml.pre is int; it must be a string"),
        ({"tokens": None}, "tokenizer.ggml.tokens is missing"),
        ({"tokens": []}, "tokenizer.ggml.t"),
        ({"tokens": "abc"}, "tokenizer.ggml.tokens is str; it must be an array of strings"),
        ({"tokens": np.arange(N)}, "tokens is an array of int64; it must be an array of strings"),
        ({"tokens": [1, 2, 3]}, "tokenizer.ggml.tokens is list; it must be an array of strings"),
        ({"tokens": [["a"], "b"]}, "tokenizer.ggml.tokens is list"),
        ({"tokens": ["", *TOKENS[1:]]}, r"tokens\[0\] is empty"),
        ({"tokens": [*TOKENS[:-1], ""]}, rf"tokens\[{N - 1}\] is empty"),
        ({"tokens": [*TOKENS[:-1], TOKENS[5]]}, rf"tokens\[{N - 1}\] repeats token 5"),
        ({"tokens": [*TOKENS[:-1], b"\xff\xfe"]}, rf"tokens\[{N - 1}\] is not valid UTF-8"),
        ({"tokens": [*TOKENS[:-2], b"\xe2\x96", b"\x81"]}, rf"\[{N - 1}\] is not valid UTF-8"),
        ({"tokens": [*TOKENS[:-1], "x" * 70_000]}, "70000 bytes; at most 65536"),
        ({"tokens": [*TOKENS[:-1], "\ud800"]}, "not valid Unicode"),
        ({"token_type": "normal"}, "token_type is str; it must be an array of integers"),
        ({"token_type": np.ones(N, np.float32)}, "token_type is an array of float32"),
        ({"token_type": np.ones((N, 1), np.int32)}, "token_type is an array of int32"),
        ({"token_type": ["normal"] * N}, "token_type is an array of <U6"),
        ({"token_type": [[1], 2]}, "token_type is list"),
        ({"token_type": np.ones(N - 1, np.int32)}, rf"{N - 1} entries for {N} tokens"),
        ({"token_type": np.ones(N + 1, np.int32)}, rf"{N + 1} entries for {N} tokens"),
        ({"token_type": np.full(N, 7, np.int32)}, r"token_type\[0\] is 7; allowed are 0 to 6"),
        ({"token_type": np.full(N, -1, np.int32)}, r"token_type\[0\] is -1"),
        ({"token_type": np.full(N, 2**40, np.int64)}, "has an entry outside"),
        ({"token_type": np.full(N, 6, np.int32)}, r"tokens\[0\] is a byte token but its text"),
        ({"scores": np.array([np.nan] * N, np.float32)}, r"scores\[0\] is not a finite number"),
        ({"scores": np.full(N, -np.inf, np.float32)}, r"scores\[0\] is not a finite number"),
        ({"scores": np.zeros(3, np.float32)}, f"scores has 3 entries for {N} tokens"),
        ({"scores": ["a"] * N}, "scores is an array of"),
        ({"merges": None}, "tokenizer.ggml.merges is missing"),
        ({"merges": "a b"}, "tokenizer.ggml.merges is str"),
        ({"merges": np.arange(4)}, "tokenizer.ggml.merges is an array of int64"),
        ({"merges": ["ab"]}, r"merges\[0\] 'ab' is not two tokens with a space between"),
        ({"merges": [""]}, r"merges\[0\] '' is not two tokens"),
        ({"merges": [" "]}, r"merges\[0\] ' ' is not two tokens"),
        ({"merges": ["a "]}, r"merges\[0\] 'a ' is not two tokens"),
        ({"merges": ["h e", "zzz e"]}, r"merges\[1\] names 'zzz', which is not in the vocabulary"),
        ({"merges": ["h zzz"]}, r"merges\[0\] names 'zzz'"),
        ({"merges": ["h h"]}, r"merges\[0\] names 'hh'"),
        ({"merges": ["\0\x1b[2J" * 9 + " b"]}, r"merges\[0\] names '\\x00\\x1B"),
        ({"bos_token_id": N}, f"bos_token_id is {N}, but the vocabulary has {N} tokens"),
        ({"eos_token_id": 2**32 - 2}, "eos_token_id is 4294967294, but"),
        ({"eos_token_id": 2**63}, f"eos_token_id is {2**63}; it must be a token id"),
        ({"eos_token_id": -2}, "eos_token_id is -2; it must be a token id"),
        ({"eot_token_id": N}, "eot_token_id"),
        ({"unknown_token_id": N}, "unknown_token_id"),
        ({"padding_token_id": 1.5}, "padding_token_id is float; it must be an integer"),
        ({"bos_token_id": "0"}, "bos_token_id is str; it must be an integer"),
        ({"bos_token_id": True}, "bos_token_id is bool; it must be an integer"),
        ({"bos_token_id": np.arange(3)}, "bos_token_id is an array of int64"),
        ({"add_bos_token": 1}, "add_bos_token is int; it must be true or false"),
        ({"add_eos_token": "yes"}, "add_eos_token is str"),
        ({"precompiled_charsmap": [1, 2]}, "charsmap is list; it must be an array of bytes"),
    ],
)  # fmt: skip
def test_each_lie_is_one_clear_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((TokenizerError, UnsupportedError), match=message) as caught:
        Tokenizer.from_metadata(broken(**changes))
    text = str(caught.value)
    assert len(text) < 500
    assert text.isprintable()


@pytest.mark.parametrize(
    "text", ["<0x-1>", "<0xZZ>", "<0x1>", "<0x100>", "<0x >", "0x41", "<0X41>", "<0x41> "]
)
def test_byte_tokens_must_be_bytes(text: str) -> None:
    metadata = small.sentencepiece([("a", -1.0)])
    metadata[P + "tokens"][3 + 0x41] = text
    with pytest.raises(TokenizerError, match=r"tokens\[68\] is a byte token but its text is not"):
        Tokenizer.from_metadata(metadata)


def test_a_byte_has_one_token() -> None:
    metadata = small.sentencepiece([], extra=[("<0x4a>", small.BYTE)])
    with pytest.raises(TokenizerError, match="is a second token for byte 74"):
        Tokenizer.from_metadata(metadata)


def test_a_special_token_is_not_a_book() -> None:
    with pytest.raises(TokenizerError, match="has 5000 bytes; at most 1024"):
        Tokenizer.from_metadata(small.byte_level(extra=[("x" * 5000, small.CONTROL)]))


def test_offsets_that_lie_are_refused_natively() -> None:
    good = StringArray.of(TOKENS)
    for index, value in ((3, -5), (3, 10**12), (-1, 10**12), (5, 0)):
        offsets = good.offsets.copy()
        offsets[index] = value
        with pytest.raises(TokenizerError, match=r"lies outside its buffer|is empty|repeats"):
            Tokenizer.from_metadata(broken(tokens=StringArray(good.blob.copy(), offsets)))


def test_a_string_array_is_as_good_as_a_list() -> None:
    merges = StringArray.of(small.MERGES)
    packed = Tokenizer.from_metadata(broken(tokens=StringArray.of(TOKENS), merges=merges))
    plain = Tokenizer.from_metadata(small.byte_level())
    assert packed.encode(" the hell and all") == plain.encode(" the hell and all")


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=5),
    st.binary(max_size=5), st.lists(st.text(max_size=3), max_size=5),
    st.lists(st.integers(-5, 300), max_size=5),
    st.lists(st.integers(-128, 127), max_size=8).map(lambda v: np.array(v, np.int8)),
    st.lists(st.floats(width=32), max_size=5).map(lambda v: np.array(v, np.float32)),
)  # fmt: skip
KEYS = (
    "model pre tokens merges scores token_type bos_token_id eos_token_id unknown_token_id "
    "seperator_token_id add_bos_token add_space_prefix remove_extra_whitespaces "
    "precompiled_charsmap"
).split()


@given(
    base=st.sampled_from(
        [small.byte_level, lambda: small.sentencepiece([("a", -1.0)]), small.wordpiece]
    ),
    changes=st.dictionaries(st.sampled_from(KEYS), JUNK, max_size=3),
    model=st.sampled_from(["gpt2", "llama", "bert", "t5", "gemma4", None]),
    text=st.text(max_size=30),
)
@settings(max_examples=400, deadline=None)
def test_any_junk_is_an_error_of_ours_or_works(
    base: Any, changes: dict[str, Any], model: str | None, text: str
) -> None:
    metadata = base() | {P + key: value for key, value in changes.items()}
    if model:
        metadata[P + "model"] = model
    try:
        tokenizer = Tokenizer.from_metadata(metadata)
        ids = tokenizer.encode(text, parse_special=True)
    except InsulaError:
        return
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert isinstance(tokenizer.decode(ids), str)
