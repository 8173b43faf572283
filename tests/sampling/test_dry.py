"""DRY: the repetitions it finds, what they cost, and the breakers that end them."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.prefix_model import ByteTokenizer
from insula.engine.breakers import BreakerTable
from insula.engine.sampling import Sampler, sample
from insula.errors import ConfigError, EngineError
from insula.types import SamplingParams

from .cases import SHAPES, row
from .test_samplers import OFF, compare

ON: dict[str, Any] = {**OFF, "dry_multiplier": 0.8}


def losses(history: list[int], *, breakers: Any = (), n_vocab: int = 8, **options: Any) -> Any:
    """What each token of a flat row loses."""
    params = SamplingParams(**(ON | options))
    flat = np.zeros(n_vocab, dtype=np.float32)
    ids, p_V = Sampler(params, breakers=breakers).distribution(flat, np.array(history, np.int32))
    assert len(ids) == n_vocab
    return np.log(p_V.max() / p_V)


def test_by_hand() -> None:
    # ends in 1 2 3, which stood before 4 (three tokens), and 3 before 1 (one token)
    history = [1, 2, 3, 4, 0, 3, 1, 2, 3]
    lost = losses(history)
    np.testing.assert_allclose(lost, [0, 0, 0, 0, 0.8 * 1.75, 0, 0, 0], atol=1e-6)
    lost = losses(history, dry_allowed_length=1, dry_base=2.0, dry_multiplier=1.0)
    np.testing.assert_allclose(lost, [0, 1, 0, 0, 4, 0, 0, 0], atol=1e-6)


def test_a_repetition_may_overlap_itself() -> None:
    # 5 5 5 5: the last three stood before the last 5
    np.testing.assert_allclose(losses([5, 5, 5, 5])[5], 0.8 * 1.75, atol=1e-6)


def test_the_longest_of_several_counts() -> None:
    history = [1, 2, 3, 7, 0, 2, 3, 7, 4, 2, 3, 6, 1, 2, 3]
    lost = losses(history)
    np.testing.assert_allclose(lost[[7, 6]], [0.8 * 1.75, 0.8], atol=1e-6)


@pytest.mark.parametrize(
    ("breakers", "lost"),
    [
        ([(2,)], 0.0),  # one token after it: shorter than is allowed
        ([(1,)], 0.8),  # two tokens after it
        ([(0,)], 0.8 * 1.75),
        ([(4,)], 0.0),  # what would be penalized is one itself
        ([(1, 2)], 0.0),
        ([(0, 1)], 0.8),
        ([(4, 5)], 0.8 * 1.75**2),  # only begins one
        ([(1,), (1, 2)], 0.0),  # of those that begin at one place, the longest
        ([(3, 4)], 0.8 * 1.75**2),  # not yet complete
    ],
)
def test_breakers(breakers: Any, lost: float) -> None:
    history = [0, 1, 2, 3, 4, 6, 0, 1, 2, 3]
    whole = losses(history, breakers=[*breakers, (6,)])
    np.testing.assert_allclose(whole[4], lost, atol=1e-6)


def test_the_window() -> None:
    history = [1, 2, 3, 4, 1, 2, 3]
    assert losses(history, dry_penalty_last_n=-1)[4] > 1
    assert losses(history, dry_penalty_last_n=7)[4] > 1
    np.testing.assert_allclose(losses(history, dry_penalty_last_n=6)[4], 0.8, atol=1e-6)
    for last_n in (0, 4, 5):
        assert losses(history, dry_penalty_last_n=last_n)[4] == 0


def test_a_long_repetition_costs_much_and_stays_a_number() -> None:
    params = SamplingParams(temperature=0.0, dry_multiplier=5.0, dry_base=100.0)
    history = np.array([*range(3), *range(1000, 1500)] * 2, dtype=np.int32)
    logits = row("normal", 2000, 0)
    logits[0] = 1e30
    sampler = Sampler(params, breakers=())
    assert sampler.distribution(logits, history)[0].tolist() != [0]
    compare(logits, SamplingParams(**(ON | {"dry_base": 100.0})), history)
    # and where nothing else is left it is still there
    only = np.full(2000, -np.inf, dtype=np.float32)
    only[0] = 1.0
    assert sampler.distribution(only, history)[0].tolist() == [0]


@settings(max_examples=400, deadline=None)
@given(
    history=st.lists(st.integers(0, 4), max_size=40),
    breakers=st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=3), max_size=3),
    allowed_length=st.integers(0, 5),
    last_n=st.sampled_from([-1, 0, 1, 7, 30]),
    samplers=st.sampled_from(
        [("dry",), ("top_k", "dry"), ("temperature", "dry"), ("dry", "temperature", "top_p")]
    ),
)
def test_against_the_definition(
    history: list[int], breakers: Any, allowed_length: int, last_n: int, samplers: Any
) -> None:
    params = SamplingParams(
        dry_multiplier=0.7,
        dry_base=1.3,
        dry_allowed_length=allowed_length,
        dry_penalty_last_n=last_n,
        samplers=samplers,
        top_k=4,
        top_p=0.8137,
        temperature=0.6,
    )
    compare(row("normal", 5, len(history)), params, np.array(history, np.int32), breakers=breakers)


@pytest.mark.parametrize("shape", SHAPES)
def test_against_the_definition_on_hard_rows(shape: str) -> None:
    for seed in range(40):
        rng = np.random.default_rng(seed)
        pattern = rng.integers(0, 700, rng.integers(1, 30))
        history = np.tile(pattern, 8)[: rng.integers(1, 200)].astype(np.int32)
        breakers = [rng.integers(0, 700, 1 + seed % 3).tolist(), [int(pattern[0])]]
        params = SamplingParams(**ON, dry_penalty_last_n=int(rng.integers(-1, 150)))
        compare(row(shape, 700, seed), params, history, breakers=breakers[: seed % 3])


def test_ids_outside_the_vocabulary() -> None:
    sampler = Sampler(SamplingParams(**ON), breakers=())
    for wrong in (-1, 64, 2**31 - 1):
        with pytest.raises(EngineError, match=r"history.*64 tokens"):
            sampler(row("normal", 64, 0), np.array([1, wrong, 1], dtype=np.int32), 0, 0)


def test_strings_without_a_tokenizer_are_refused() -> None:
    logits, history = row("normal", 64, 0), np.zeros(3, dtype=np.int32)
    with pytest.raises(ConfigError, match="dry_sequence_breakers"):
        sample(logits, SamplingParams(dry_multiplier=1.0), history, 0, 0)
    sample(logits, SamplingParams(dry_multiplier=1.0, dry_sequence_breakers=()), history, 0, 0)


def test_the_cost_is_linear_in_the_context() -> None:
    """Generous: a quadratic search would take minutes for the worst of contexts."""
    history = np.zeros(200_000, dtype=np.int32)
    sampler = Sampler(SamplingParams(**ON), breakers=())
    started = time.perf_counter()
    sampler(row("normal", 64, 0), history, 0, 0)
    assert time.perf_counter() - started < 2


class Pieces(ByteTokenizer):
    """A vocabulary of given pieces, the longest first where several fit."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces
        self.vocab_size = len(pieces)
        self.reads = 0

    def token_bytes(self, token_id: int) -> bytes:
        self.reads += 1
        return self.pieces[token_id]

    def encode(self, text: str, **_: object) -> list[int]:
        data, ids = text.encode(), []
        while data:
            fitting = [i for i, p in enumerate(self.pieces) if p and data.startswith(p)]
            ids.append(max(fitting, key=lambda i: len(self.pieces[i])))
            data = data[len(self.pieces[ids[-1]]) :]
        return ids


def test_breakers_are_tokens_that_contain_or_begin_them() -> None:
    #               0     1       2     3      4      5     6      7     8
    table = Pieces(b"a", b"x\n", b"b", b"ab", b"xa", b"c", b"bc", b"", b"zabcz")
    find = BreakerTable(table).find
    assert find(["\n"]) == ((1,),)
    assert find(["a"]) == ((0,), (3,), (4,), (8,))
    assert find(["ab"]) == ((0, 2), (3,), (4, 2), (8,))
    # "bc" is one token after "a"; after "ab" comes "c"
    assert find(["abc"]) == ((0, 6), (3, 5), (4, 6), (8,))
    assert find(["a", "ab"]) == ((0,), (0, 2), (3,), (4,), (4, 2), (8,))
    assert find([]) == ()


def test_a_breaker_may_be_cut_inside_a_character() -> None:
    dash = "\u2014".encode()
    table = Pieces(dash[:1], dash[1:2], dash[2:], b"x", b"-" + dash[:2])
    assert BreakerTable(table).find(["\u2014"]) == ((0, 1, 2), (4, 2))


def test_a_space_that_a_vocabulary_puts_first_is_no_part_of_a_breaker() -> None:
    class Spaced(Pieces):
        def encode(self, text: str, **_: object) -> list[int]:
            return super().encode(" " + text)

    assert BreakerTable(Spaced(b" ", b"a", b"b", b" b")).find(["ab"]) == ((1, 2),)


def test_the_vocabulary_is_read_once() -> None:
    table = Pieces(b"a", b"b", b"ab")
    breakers = BreakerTable(table)
    first = breakers.find(["a"])
    reads = table.reads
    assert breakers.find(["a"]) == first
    assert table.reads == reads
