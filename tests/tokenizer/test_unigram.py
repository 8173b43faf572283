"""SentencePiece's unigram: against the plain definition, and (slow) against sentencepiece."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from insula.errors import TokenizerError
from insula.tokenizer import Tokenizer
from tokenizer import small

MARK = small.MARK


def unigram(pieces: list[tuple[str, float]], **rest: Any) -> dict[str, Any]:
    """<pad> </s> <unk> and `pieces`, as in T5."""
    tokens = ["<pad>", "</s>", "<unk>", *(text for text, _ in pieces)]
    scores = np.array([0, 0, 0, *(score for _, score in pieces)], np.float32)
    types = [small.CONTROL, small.CONTROL, small.UNKNOWN] + [small.NORMAL] * len(pieces)
    ids = {"eos_token_id": 1, "unknown_token_id": 2, "padding_token_id": 0}
    flags = {"add_space_prefix": True, "remove_extra_whitespaces": True}
    return small.metadata("t5", tokens, types, scores=scores, **ids | flags | rest)


def best_score(pieces: dict[str, float], text: str) -> float:
    """The highest score that any segmentation of `text` has."""
    unknown = min([0.0, *pieces.values()]) - 10.0

    @cache
    def best(start: int) -> float:
        if start == len(text):
            return 0.0
        found = [unknown + best(start + 1)] if text[start] not in pieces else []
        for end in range(start + 1, len(text) + 1):
            if text[start:end] in pieces:
                found.append(pieces[text[start:end]] + best(end))
        return max(found, default=-np.inf)

    return best(0)


@pytest.mark.parametrize("seed", range(20))
def test_random_pieces_reach_the_best_score(seed: int) -> None:
    rng = random.Random(seed)
    made = {"".join(rng.choices("abé" + MARK, k=rng.randrange(1, 5))) for _ in range(30)}
    pieces = {text: float(np.float32(-rng.random() * 8)) for text in sorted(made)}
    metadata = unigram(list(pieces.items()))
    tokenizer = Tokenizer.from_metadata(metadata)
    tokens = metadata["tokenizer.ggml.tokens"]
    for length in (1, 2, 5, 20, 60):
        text = "".join(rng.choices("abé  x", k=length)).strip()
        if not text:
            continue
        ids = tokenizer.encode(text, add_special=False)
        marked = MARK + MARK.join(text.split())
        known = [tokens[i] for i in ids if i != 2]
        if 2 not in ids:  # runs of unknown characters are one token: their number is not told
            assert "".join(known) == marked
            assert sum(pieces[t] for t in known) == pytest.approx(best_score(pieces, marked))


def test_whitespace_and_unknown_runs() -> None:
    metadata = unigram([(MARK, -2.0), (MARK + "a", -1.0), ("a", -3.0)])
    tokens = metadata["tokenizer.ggml.tokens"]
    tokenizer = Tokenizer.from_metadata(metadata)

    def texts(text: str) -> list[str]:
        return [tokens[i] for i in tokenizer.encode(text)]

    assert texts("a") == [MARK + "a", "</s>"]
    assert texts("  a   a  ") == [MARK + "a", MARK + "a", "</s>"]
    assert texts("axyza") == [MARK + "a", "<unk>", "a", "</s>"]
    assert texts("   ") == ["</s>"]
    assert texts("") == ["</s>"]
    kept = Tokenizer.from_metadata(metadata | {small.P + "remove_extra_whitespaces": False})
    assert [tokens[i] for i in kept.encode(" a", add_special=False)] == [MARK, MARK + "a"]


@pytest.mark.parametrize(
    "charsmap",
    [b"\x01", b"\xff\xff\xff\xff", b"\x05\0\0\0AAAAA", b"\x04\0\0\0\0\0\0\0abc", b"\0\0\0\0\xff\0"],
)
def test_a_charsmap_that_does_not_fit_is_refused(charsmap: bytes) -> None:
    rest = {"precompiled_charsmap": np.frombuffer(charsmap, np.uint8)}
    with pytest.raises(TokenizerError, match="precompiled_charsmap"):
        Tokenizer.from_metadata(unigram([("a", -1.0)], **rest))


def test_a_charsmap_that_points_outside_itself_is_an_error() -> None:
    unit = (0x1FFFFF << 10 | 1 << 9 | 1 << 8).to_bytes(4, "little")
    rest = {"precompiled_charsmap": np.frombuffer(b"\x04\0\0\0" + unit + b"x\0", np.uint8)}
    tokenizer = Tokenizer.from_metadata(unigram([("a", -1.0)], **rest))
    with pytest.raises(TokenizerError, match="points outside"):
        tokenizer.encode("a")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "options"),
    [
        ("nmt_nfkc", {}),
        ("identity", {"remove_extra_whitespaces": False}),
        ("nmt_nfkc_cf", {"add_dummy_prefix": False}),
    ],
)
def test_trained_vocabularies_agree_with_sentencepiece(
    rule: str, options: dict[str, bool], shared: Path, tmp_path: Path
) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    from tokenizer import trained

    model = trained.train(
        shared, tmp_path, model_type="unigram", normalization_rule_name=rule, **options
    )
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(model))
    tokenizer = Tokenizer.from_metadata(trained.metadata(model, "t5"))
    for text in trained.texts(shared, 1500, avoid="\n\n\n"):
        assert tokenizer.encode(text, add_special=False) == oracle.encode(text)
