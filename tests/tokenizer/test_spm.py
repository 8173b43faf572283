"""SentencePiece's BPE: against the plain definition, and (slow) against sentencepiece itself."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from insula.errors import TokenizerError, UnsupportedError
from insula.tokenizer import Tokenizer
from tokenizer import small

MARK = small.MARK
PIECES = [(MARK, -9.0), ("a", -1.0), ("b", -2.0), ("ab", -0.5), (MARK + "a", -0.7), ("é", -3.0)]


def test_prefix_space_and_byte_fallback() -> None:
    metadata = small.sentencepiece(PIECES)
    tokens = metadata["tokenizer.ggml.tokens"]
    tokenizer = Tokenizer.from_metadata(metadata)

    def texts(text: str, **options: bool) -> list[str]:
        return [tokens[i] for i in tokenizer.encode(text, **options)]

    assert texts("ab") == ["<s>", MARK, "ab"]  # "ab" scores above the space with "a"
    assert texts("a b") == ["<s>", MARK + "a", MARK, "b"]
    assert texts("中", add_special=False) == [MARK, "<0xE4>", "<0xB8>", "<0xAD>"]
    assert texts("\n", add_special=False) == [MARK, "<0x0A>"]
    assert texts("", add_special=True) == ["<s>"]
    # Special tokens are text unless asked for; each is followed by a new start.
    assert "<s>" not in texts("<s>", add_special=False)
    assert texts("<s>ab</s>a", add_special=False, parse_special=True) == [
        "<s>", MARK, "ab", "</s>", MARK + "a",
    ]  # fmt: skip
    plain = Tokenizer.from_metadata(small.sentencepiece(PIECES, add_space_prefix=False))
    assert [tokens[i] for i in plain.encode("ab", add_special=False)] == ["ab"]
    assert plain.decode(plain.encode(" ab"), skip_special=True) == " ab"


def test_begin_and_end_tokens_follow_the_flags() -> None:
    for bos in (False, True):
        for eos in (False, True):
            metadata = small.sentencepiece(PIECES, add_bos_token=bos, add_eos_token=eos)
            ids = Tokenizer.from_metadata(metadata).encode("b")
            assert (ids[0] == 1, ids[-1] == 2) == (bos, eos)


def test_the_first_space_goes_when_decoding_a_whole_text() -> None:
    tokenizer = Tokenizer.from_metadata(small.sentencepiece(PIECES))
    ids = tokenizer.encode("a b")
    assert tokenizer.decode(ids[1:]) == "a b"
    assert tokenizer.decode(ids[1:], continues=True) == " a b"
    assert tokenizer.decode(ids, skip_special=True) == "a b"
    assert tokenizer.decode(ids) == "<s> a b"
    assert tokenizer.decode(tokenizer.encode("  a"), skip_special=True) == "  a"


def test_unused_pieces_come_apart_again() -> None:
    # sentencepiece, bpe_model_test.cc: an unused piece may be a step but never a result
    pieces = [("a", -1.0), ("b", -1.0), ("c", -1.0), ("d", -1.0), ("abc", -0.3)]
    extra = [("ab", small.UNUSED), ("cd", small.UNUSED)]
    metadata = small.sentencepiece(pieces, extra=extra, add_space_prefix=False)
    metadata["tokenizer.ggml.scores"][-2:] = [-0.2, -0.1]
    tokens = metadata["tokenizer.ggml.tokens"]
    tokenizer = Tokenizer.from_metadata(metadata)
    assert [tokens[i] for i in tokenizer.encode("ab", add_special=False)] == ["a", "b"]
    assert [tokens[i] for i in tokenizer.encode("abe", add_special=False)] == ["a", "b", "<0x65>"]
    # cd (the best) is taken first, so abc cannot be
    assert [tokens[i] for i in tokenizer.encode("abcd", add_special=False)] == ["a", "b", "c", "d"]
    assert [tokens[i] for i in tokenizer.encode("abc", add_special=False)] == ["abc"]


def test_user_defined_tokens_are_found_first() -> None:
    extra = [("<sep>", small.USER_DEFINED), ("\n\n", small.USER_DEFINED)]
    metadata = small.sentencepiece(PIECES, extra=extra, add_space_prefix=False)
    tokens = metadata["tokenizer.ggml.tokens"]
    tokenizer = Tokenizer.from_metadata(metadata)
    ids = tokenizer.encode("ab<sep>\n\n\nab", add_special=False)
    assert [tokens[i] for i in ids] == ["ab", "<sep>", "\n\n", "<0x0A>", "ab"]
    assert tokenizer.decode(ids, skip_special=True) == "ab<sep>\n\n\nab"
    assert not tokenizer.is_special(ids[1])


def test_without_byte_tokens_an_unknown_character_is_an_error() -> None:
    metadata = small.metadata(
        "llama", ["<unk>", MARK, "a"], [small.UNKNOWN, 1, 1], scores=np.zeros(3, np.float32),
        add_bos_token=False,
    )  # fmt: skip
    tokenizer = Tokenizer.from_metadata(metadata)
    assert tokenizer.encode("a a") == [1, 2, 1, 2]
    with pytest.raises(TokenizerError, match=r"the character U\+00F1, for which"):
        tokenizer.encode("añ")


def test_whitespace_removal_is_refused_not_ignored() -> None:
    metadata = small.sentencepiece(PIECES, remove_extra_whitespaces=True)
    with pytest.raises(UnsupportedError, match="remove_extra_whitespaces"):
        Tokenizer.from_metadata(metadata)


def reference(metadata: dict[str, Any], text: str) -> list[int]:
    """The whole text by the definition, without special tokens."""
    tokens = metadata["tokenizer.ggml.tokens"]
    scores = metadata["tokenizer.ggml.scores"]
    kinds = metadata["tokenizer.ggml.token_type"]
    ids = {t: i for i, t in enumerate(tokens) if kinds[i] == small.NORMAL}
    symbols = small.merge_by(
        list(MARK + text.replace(" ", MARK)),
        lambda a, b: -float(scores[ids[a + b]]) if a + b in ids else None,
    )
    out: list[int] = []
    for symbol in symbols:
        out += [ids[symbol]] if symbol in ids else [3 + byte for byte in symbol.encode()]
    return out


@pytest.mark.parametrize("seed", range(25))
def test_random_pieces_by_the_definition(seed: int) -> None:
    """Ties, missing parts, and pieces that reach across the start of a word."""
    rng = random.Random(seed)
    alphabet = "ab" + MARK + rng.choice(("", "é"))
    texts = {"".join(rng.choices(alphabet, k=rng.choice((1, 2, 2, 3, 3, 4, 6)))) for _ in range(40)}
    pieces = [(text, float(rng.choice((-1, -2, -3, -4.5)))) for text in sorted(texts)]
    metadata = small.sentencepiece(pieces)
    tokenizer = Tokenizer.from_metadata(metadata)
    for length in (0, 1, 2, 5, 10, 31, 33, 80, 200):
        text = "".join(rng.choices("ab é\n", weights=(5, 5, 3, 1, 0.3), k=length))
        if text:
            assert tokenizer.encode(text, add_special=False) == reference(metadata, text)


@pytest.mark.parametrize("kind", ["random", "a", " "])
def test_ten_megabytes_in_one_run(kind: str, vocabulary: Any) -> None:
    """Anything but O(n log n) would take hours."""
    _, tokenizer = vocabulary("llama-spm")
    data = kind.encode() * 10_000_000
    if kind == "random":
        data = np.random.default_rng(0).integers(97, 123, 4_000_000, np.uint8).tobytes()
    ids = tokenizer._native.encode(data, False, False)
    assert tokenizer._native.decode(ids.astype(np.int64), False, False) == data


@pytest.mark.slow
@pytest.mark.parametrize("prefix", [True, False])
def test_trained_vocabularies_agree_with_sentencepiece(
    prefix: bool, shared: Path, tmp_path: Path
) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    from tokenizer import trained

    options = {"byte_fallback": True, "normalization_rule_name": "identity"} | {
        "remove_extra_whitespaces": False, "allow_whitespace_only_pieces": True,
    }  # fmt: skip
    if not prefix:
        options |= {"user_defined_symbols": ["<sep>", MARK * 2, MARK * 3, "\n\n"]}
    model = trained.train(
        shared,
        tmp_path,
        model_type="bpe",
        add_dummy_prefix=prefix,
        control_symbols=["<ctl>"],
        **options,
    )
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(model))
    tokenizer = Tokenizer.from_metadata(trained.metadata(model, "llama"))
    for text in trained.texts(shared, 1500, avoid=MARK):
        ids = oracle.encode(text)
        assert tokenizer.encode(text, add_special=False) == ids
        assert tokenizer.decode(ids, skip_special=True) == oracle.decode(ids)
