"""Reading llama.cpp's chunks: the ids that it leaves out, scores, ends and errors."""

from __future__ import annotations

from typing import Any

import pytest

from insula.engine.backends.llamacpp_stream import GapFinder, StreamReader
from insula.errors import ContextOverflowError, EngineError

PIECES = [
    b"a",
    b"\xf0",
    b"\x9f",
    b"\xf0\x9f",
    b"\x98",
    b"\x80",
    b"\x98\x80",
    b" b",
    b"\xc3",
    b"\xa9",
]


class Vocabulary:
    vocab_size = len(PIECES)

    def token_bytes(self, token_id: int) -> bytes:
        return PIECES[token_id]


def chunk(text: str, token_id: int, n: int, **more: Any) -> dict[str, Any]:
    entry = {"id": token_id, "logprob": -0.5, "top_logprobs": [{"id": token_id, "logprob": -0.5}]}
    return {
        "choices": [{"text": text, "logprobs": {"content": [entry]}, "finish_reason": None}],
        "timings": {"predicted_n": n},
        **more,
    }


def last(reason: str, n: int) -> dict[str, Any]:
    return {
        "choices": [{"text": "", "logprobs": None, "finish_reason": reason}],
        "usage": {"completion_tokens": n},
        "timings": {"predicted_n": n, "cache_n": 3},
    }


def reader(logprobs: int | None = None) -> StreamReader:
    vocabulary: Any = Vocabulary()
    return StreamReader(tokenizer=vocabulary, gaps=GapFinder(vocabulary), logprobs=logprobs)


def test_plain_tokens() -> None:
    r = reader()
    first = r.read(chunk("a", 0, 1))
    assert first is not None
    assert (first.text, first.token_ids, first.logprobs) == ("a", (0,), ())
    assert r.read(last("stop", 1)) is None
    assert (r.ended, r.notes(), r.timings["cache_n"]) == ("stop", (), 3)


def test_the_only_way_to_fill_a_gap_is_found() -> None:
    piece = reader().read(chunk("é", 9, 2))
    assert piece is not None
    assert piece.token_ids == (8, 9)


def test_two_ways_to_fill_a_gap_are_not_chosen_between() -> None:
    # F0 9F 98 before 80 with two tokens: only (F0 9F)(98), since (F0)(9F 98) is no token.
    r = reader()
    piece = r.read(chunk("😀", 5, 3))
    assert piece is not None
    assert piece.token_ids == (3, 4, 5)
    ambiguous: Any = Vocabulary()
    two_ways = [b"\xf0", b"\x9f\x98", b"\xf0\x9f", b"\x98", b"\x80"]
    ambiguous.token_bytes = two_ways.__getitem__
    ambiguous.vocab_size = len(two_ways)
    assert GapFinder(ambiguous).find("😀".encode(), 4, 2) is None


def test_a_gap_that_cannot_be_filled_is_counted_and_said() -> None:
    r = reader()
    piece = r.read(chunk("�b", 7, 3))
    assert piece is not None
    assert piece.token_ids == (7,)
    assert r.lost == 2
    assert "2 generated tokens" in r.notes()[0]


def test_tokens_after_the_last_chunk_are_counted() -> None:
    r = reader()
    r.read(chunk("a", 0, 1))
    r.read(last("length", 3))
    assert (r.ended, r.lost) == ("length", 2)


def test_scores_of_hidden_tokens_are_nan_and_said() -> None:
    r = reader(logprobs=1)
    piece = r.read(chunk("é", 9, 2))
    assert piece is not None
    hidden, shown = piece.logprobs
    assert hidden.logprob != hidden.logprob
    assert (shown.token_id, shown.token, shown.logprob) == (9, b"\xa9", -0.5)
    assert shown.top == ((9, b"\xa9", -0.5),)
    assert "1 tokens" in r.notes()[0]


def test_zero_alternatives_means_none() -> None:
    piece = reader(logprobs=0).read(chunk("a", 0, 1))
    assert piece is not None
    assert piece.logprobs[0].top == ()


def test_progress_brings_nothing() -> None:
    progress = {"choices": [{"text": "", "logprobs": None, "finish_reason": None}]}
    assert reader().read(progress) is None


def test_errors_become_ours() -> None:
    with pytest.raises(ContextOverflowError) as info:
        reader().read(
            {"error": {"type": "exceed_context_size_error", "n_prompt_tokens": 9, "n_ctx": 8}}
        )
    assert (info.value.needed, info.value.limit) == (9, 8)
    with pytest.raises(EngineError, match="bad thing"):
        reader().read({"error": {"type": "other", "message": "bad thing"}})
