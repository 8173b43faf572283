"""Byte-pair encoding: against the plain definition, and against Hugging Face tokenizers."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as HuggingFace

from insula.errors import TokenizerError, UnsupportedError
from insula.tokenizer import Tokenizer
from tokenizer import small

PRE = {
    "gpt-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}


def huggingface(metadata: dict[str, Any], name: str) -> HuggingFace:
    """The same vocabulary in Hugging Face tokenizers, with the model's own expression."""
    tokens = list(metadata["tokenizer.ggml.tokens"])
    kinds = np.asarray(metadata["tokenizer.ggml.token_type"])
    made = HuggingFace(
        models.BPE(
            {token: i for i, token in enumerate(tokens)},
            [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]],
            ignore_merges=name == "llama-bpe",
        )
    )
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE[name]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    control = [tokens[i] for i in np.flatnonzero(kinds == small.CONTROL)]
    made.add_special_tokens([AddedToken(text, normalized=False) for text in control])
    made.encode_special_tokens = True  # text is text, unless asked otherwise below
    return made


@pytest.mark.parametrize("name", PRE)
def test_real_vocabularies_agree_with_hugging_face(
    name: str, shared: Path, vocabulary: Any
) -> None:
    metadata, tokenizer = vocabulary(name)
    oracle = huggingface(metadata, name)
    rng = random.Random(name)
    book = (shared / "data/texts/el_quijote.txt").read_text()[:200_000]
    texts = [book, (shared / "data/texts/tinyshakespeare.txt").read_text()[:200_000]]
    texts += [small.random_text(rng, 200) for _ in range(100)]
    special = [t for t in ("<|im_start|>", "<|eot_id|>", "<|endoftext|>") if tokenizer.token_id(t)]
    texts += [
        f"a {rng.choice(special)} b{rng.choice(special)}{rng.choice(special)}" for _ in range(9)
    ]
    for text in texts:
        oracle.encode_special_tokens = True
        ids = oracle.encode(text).ids
        assert tokenizer.encode(text, add_special=False) == ids
        assert tokenizer.decode(ids) == oracle.decode(ids, skip_special_tokens=False) == text
        oracle.encode_special_tokens = False
        ids = oracle.encode(text).ids
        assert tokenizer.encode(text, add_special=False, parse_special=True) == ids
        assert tokenizer.decode(ids, skip_special=True) == oracle.decode(ids)


def reference(metadata: dict[str, Any], word: str) -> list[int]:
    """One word by the definition."""
    ids = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    ranks = {tuple(m.split(" ", 1)): i for i, m in enumerate(metadata["tokenizer.ggml.merges"])}
    symbols = small.merge_by(list(small.as_alphabet(word)), lambda a, b: ranks.get((a, b)))
    return [ids[symbol] for symbol in symbols]


@pytest.mark.parametrize("seed", range(20))
def test_random_merges_by_the_definition(seed: int) -> None:
    """Short words are scanned and long ones use a heap: both, with ties and out-of-order ranks."""
    rng = random.Random(seed)
    known, merges = list("abc"), []
    for _ in range(rng.randrange(1, 40)):
        left, right = rng.choice(known), rng.choice(known)
        if left + right not in known and len(left + right) < 12:
            known.append(left + right)
            merges.append(f"{left} {right}")
    rng.shuffle(merges)
    metadata = small.byte_level(merges=merges)
    tokenizer = Tokenizer.from_metadata(metadata)
    for length in (1, 2, 3, 5, 8, 31, 32, 33, 34, 100, 300):
        word = "".join(rng.choices("abc", k=length))
        assert tokenizer.encode(word, add_special=False) == reference(metadata, word)


def test_of_repeated_merges_the_first_counts() -> None:
    twice = Tokenizer.from_metadata(small.byte_level(merges=["a b", "b c", "a b"][:2]))
    metadata = small.byte_level(merges=["a b", "b c"])
    metadata["tokenizer.ggml.merges"] = ["a b", "b c", "a b"]
    assert Tokenizer.from_metadata(metadata).encode("abc") == twice.encode("abc")


def test_a_piece_that_is_a_token_is_that_token_where_the_model_says_so() -> None:
    extra = [("hello", small.NORMAL), ("Ġworld", small.NORMAL)]
    by_merges = Tokenizer.from_metadata(small.byte_level(extra=extra))
    whole = Tokenizer.from_metadata(small.byte_level(pre="llama-bpe", extra=extra))
    assert whole.token_id("hello") in whole.encode("hello world", add_special=False)
    assert len(whole.encode("hello world", add_special=False)) == 2
    assert by_merges.token_id("hello") not in by_merges.encode("hello world")


def test_zero_bytes_are_text() -> None:
    tokenizer = Tokenizer.from_metadata(small.byte_level())
    ids = tokenizer.encode_bytes(b"a\0b\0", add_special=False)
    assert ids == [ord("a"), 0, ord("b"), 0]
    assert tokenizer.decode(ids) == "a\0b\0"


def test_text_that_is_not_unicode_is_refused_with_its_place() -> None:
    tokenizer = Tokenizer.from_metadata(small.byte_level())
    with pytest.raises(TokenizerError, match="lone surrogate at character 2"):
        tokenizer.encode("ab\ud800")
    bad = {
        b"ab\xff": 2,
        b"\xc0\x80": 0,
        b"a\xed\xa0\x80": 1,
        b"\xf4\x90\x80\x80": 0,
        b"x\xe2\x96": 1,
    }
    for data, place in bad.items():
        with pytest.raises(TokenizerError, match=f"not valid UTF-8 at byte {place}"):
            tokenizer.encode_bytes(data)
        text = data.decode(errors="replace")
        assert tokenizer.decode(tokenizer.encode_bytes(data, errors="replace")) == text


def test_a_byte_without_a_token_is_an_error_when_it_comes() -> None:
    metadata = small.byte_level()
    tokens = metadata["tokenizer.ggml.tokens"]
    tokens[0xC3] = "unused"
    tokenizer = Tokenizer.from_metadata(metadata)
    assert tokenizer.encode("plum") == list(b"plum")
    with pytest.raises(
        TokenizerError, match=r"the character U\+00E9, for which the vocabulary has no token"
    ):
        tokenizer.encode("pé")


def test_other_vocabularies_are_not_taken_for_bytes() -> None:
    letters = list("abcdefghijklmnopqrstuvwxyzñ ")
    for tokens in (letters, [f"token{i}" for i in range(300)], small.byte_alphabet()[:100]):
        metadata = small.metadata("gpt2", tokens, pre="gpt-2", merges=[])
        with pytest.raises(TokenizerError, match="of the 256 bytes have a token"):
            Tokenizer.from_metadata(metadata)
    for model in ("rwkv", "plamo2", "hybriddna", "whitespace", "char", "none", ""):
        with pytest.raises((UnsupportedError, TokenizerError), match=r"tokenizer\.ggml\.model"):
            Tokenizer.from_metadata(small.metadata(model, letters))


LONG = {"letter": "a", "space": " ", "newline": "\n", "random": "", "emoji": "🦙", "quote": "'"}


LONG_CASES = [(name, kind) for name in ("gpt-2", "llama-bpe", "gemma-4") for kind in LONG]
QUICK = [("gpt-2", "letter"), ("llama-bpe", "space")]


@pytest.mark.parametrize(
    ("name", "kind"),
    [c if c in QUICK else pytest.param(*c, marks=pytest.mark.slow) for c in LONG_CASES],
)
def test_ten_megabytes_in_one_run(name: str, kind: str, vocabulary: Any) -> None:
    """Anything but O(n log n) would take hours."""
    _, tokenizer = vocabulary(name)
    text = LONG[kind] * (10_000_000 // max(len(LONG[kind].encode()), 1))
    if kind == "random":
        text = bytes(np.random.default_rng(0).integers(97, 123, 10_000_000, np.uint8)).decode()
    ids = tokenizer._native.encode(text.encode(), False, False)
    assert tokenizer._native.decode(ids.astype(np.int64), False, False) == text.encode()


def test_threads_share_a_tokenizer(vocabulary: Any, shared: Path) -> None:
    _, tokenizer = vocabulary("llama-bpe")
    text = (shared / "data/texts/tinyshakespeare.txt").read_text()[:300_000]
    expected = tokenizer.encode(text)
    found: list[bool] = []
    threads = [
        threading.Thread(target=lambda: found.append(tokenizer.encode(text) == expected))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 4


def test_gemma4_merges_characters_and_keeps_newlines() -> None:
    mark = small.MARK
    tokens = [
        "<bos>",
        *(f"<0x{b:02X}>" for b in range(256)),
        "a",
        "b",
        mark,
        "ab",
        mark + "a",
        "\n\n",
        ">",
    ]
    tokens += [mark + "<", "<", ">" + mark + "<"]
    types = [small.CONTROL] + [small.BYTE] * 256 + [small.NORMAL] * 10
    merges = ["a b", f"{mark} a", f"{mark} <", f"> {mark}<"]
    metadata = small.metadata("gemma4", tokens, types, merges=merges, bos_token_id=0)
    tokenizer = Tokenizer.from_metadata(metadata)

    def texts(text: str) -> list[str]:
        return [tokens[i] for i in tokenizer.encode(text, add_special=False)]

    assert texts("ab ab") == ["ab", mark, "ab"]  # a b comes before the space and a
    assert texts("a a") == ["a", mark + "a"]
    assert texts("a\n\nb") == ["a", "\n\n", "b"]
    assert texts("a\n\n\nb") == ["a", "<0x0A>", "<0x0A>", "<0x0A>", "b"]
    assert texts("> <") == [">" + mark + "<"]  # a merge across a word's start
    assert texts("é") == ["<0xC3>", "<0xA9>"]
    assert tokenizer.encode("a")[0] == 0  # the begin token, always
    assert tokenizer.decode(tokenizer.encode("ab é > <\n\n"), skip_special=True) == "ab é > <\n\n"
