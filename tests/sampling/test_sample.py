"""The choice itself: determinism, frequencies, log-probabilities, failures."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from insula.engine.sampling import Sampler, log_probabilities, sample
from insula.errors import ConfigError, EngineError
from insula.ops import reference_sampling as reference
from insula.types import SamplingParams

from .cases import SHAPES, SIZES, row, words

NONE = np.empty(0, dtype=np.int32)
SETTINGS: list[dict[str, Any]] = [
    {},
    {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 1.0},
    {"top_k": 0, "top_p": 0.7137, "temperature": 1.3},
    {"top_k": 0, "min_p": 0.2, "top_p": 1.0},
    {"typical_p": 0.6137, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_the_token_is_the_defined_one(setting: dict[str, Any]) -> None:
    params = SamplingParams(**setting)
    sampler = Sampler(params)
    for shape in SHAPES:
        for n_vocab in SIZES:
            logits = row(shape, n_vocab, 9)
            p_V = reference.distribution(logits, params, NONE)
            for position in range(20):
                chosen = sampler(logits, NONE, position, 1234).token_id
                assert chosen == reference.choose(p_V, reference.uniform_at(1234, position))


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_frequencies_over_seeds(setting: dict[str, Any]) -> None:
    logits = np.array([2.0, 1.5, 1.5, 0.0, -1.0, -0.5, 1.0, -8.0], dtype=np.float32)
    params = SamplingParams(**setting)
    sampler = Sampler(params)
    n = 20_000
    counts = np.zeros(len(logits))
    for seed in range(n):
        counts[sampler(logits, NONE, 3, seed * 2654435761).token_id] += 1
    expected = reference.distribution(logits, params, NONE) * n
    assert (counts[expected == 0] == 0).all()
    expected_often = expected > 5
    difference = (counts - expected)[expected_often]
    chi_square = (difference**2 / expected[expected_often]).sum()
    # p = 1e-4 at 1..7 degrees of freedom
    critical = [15.1, 18.4, 21.1, 23.5, 25.7, 27.9, 29.9][int(expected_often.sum()) - 2]
    assert chi_square < critical


def _portable_row(n_vocab: int, salt: int) -> npt.NDArray[np.float32]:
    """Logits from integers alone, so that every platform's are the same bits."""
    i = np.arange(n_vocab, dtype=np.uint64)
    mixed = (i * np.uint64(2654435761) + np.uint64(salt * 40503)) % np.uint64(2**32)
    unit = (mixed >> np.uint64(16)).astype(np.float32) / np.float32(65536)
    return (unit * unit * unit * np.float32(24)).astype(np.float32)


def test_the_same_question_gets_the_same_answer_on_every_machine() -> None:
    """Golden: tokens and the bits of their log-probabilities.

    First made on x86-64 by g++ 12 and clang 14, at SSE2, AVX2 and AVX-512: all equal. A change of
    these values is a change of every seeded answer; print `seen` to make them again.
    """
    digest = hashlib.sha256()
    seen: list[int] = []
    history = np.arange(0, 3000, 7, dtype=np.int32)
    for salt, setting in enumerate([*SETTINGS, {"temperature": 0.0, "repeat_penalty": 1.2}]):
        sampler = Sampler(SamplingParams(**setting, logprobs=3))
        for position in range(12):
            result = sampler(_portable_row(49152, salt), history, position, 42)
            seen.append(result.token_id)
            bits = np.array([result.logprob, *(lp for _, lp in result.top)], dtype="<f4")
            digest.update(np.array([i for i, _ in result.top], dtype="<i4").tobytes())
            digest.update(bits.tobytes())
    assert seen[:12] == GOLDEN_FIRST
    assert hashlib.sha256(np.array(seen, dtype="<i4").tobytes()).hexdigest() == GOLDEN_TOKENS
    assert digest.hexdigest() == GOLDEN_LOGPROBS


GOLDEN_FIRST = [24476, 17711, 33825, 33825, 40590, 16114, 38006, 21282, 7752, 21282, 33825, 22879]
GOLDEN_TOKENS = "86ae9eff0a2d4da0912fb5f7a3d3d0e33f240e3bf6ff7c2b559f3b8d56685c04"
GOLDEN_LOGPROBS = "387456477166b5ccac3eae5bb0447571fd9fb544a9b038e325625c2b687c400c"


def test_nothing_is_remembered_between_calls() -> None:
    """Interleaved sizes, settings and threads give what each call gives alone."""
    jobs = [
        (row(shape, n_vocab, seed), Sampler(SamplingParams(**setting, repeat_penalty=1.1)))
        for seed, shape in enumerate(SHAPES)
        for n_vocab in SIZES
        for setting in SETTINGS
    ]

    def work(job: tuple[npt.NDArray[np.float32], Sampler]) -> int:
        logits, sampler = job
        history = np.arange(min(20, len(logits)), dtype=np.int32)
        return sampler(logits, history, 5, 99).token_id

    alone = [work(job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, reversed(jobs))) == alone[::-1]


def test_sample_takes_params_and_leaves_its_arguments_alone() -> None:
    logits, history = row("normal", 700, 0), np.array([1, 2, 3], dtype=np.int32)
    before = logits.copy()
    params = SamplingParams(logit_bias={1: 5.0}, repeat_penalty=1.5)
    first = sample(logits, params, history, 0, 0)
    assert first == sample(logits, params, history, 0, 0) == Sampler(params)(logits, history, 0, 0)
    assert first.logprob is None
    assert first.top == ()
    np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n_vocab", SIZES)
def test_log_probabilities_are_those_of_the_raw_logits(shape: str, n_vocab: int) -> None:
    logits = row(shape, n_vocab, 3)
    expected_V = reference.log_probabilities(logits)
    n_top = min(5, n_vocab)
    # bias, penalties and temperature change the choice and not what is reported
    params = SamplingParams(
        logprobs=n_top, logit_bias={0: 30.0}, temperature=3.0, repeat_penalty=2.0
    )
    result = sample(logits, params, np.zeros(4, dtype=np.int32), 0, 0)
    assert result.logprob is not None
    assert np.float32(result.logprob) == result.logprob  # a float32, not rounded further
    np.testing.assert_array_max_ulp(np.float32(result.logprob), expected_V[result.token_id], 1)
    order = reference.best_first(logits.astype(np.float64))[:n_top]
    assert [token for token, _ in result.top] == order.tolist()
    for token, logprob in result.top:
        np.testing.assert_array_max_ulp(np.float32(logprob), expected_V[token], 1)
        if token == result.token_id:
            assert logprob == result.logprob
        assert log_probabilities(logits, token)[0] == logprob


def test_a_greedy_token_is_the_top_one_and_its_logprob_the_same_float() -> None:
    params = SamplingParams(temperature=0.0, logprobs=1)
    for seed in range(20):
        result = sample(row("ties", 700, seed), params, NONE, 0, 0)
        assert result.top == ((result.token_id, result.logprob),)


def test_the_chosen_token_is_reported_also_outside_the_top() -> None:
    logits = np.array([9.0, 0.0, 8.0], dtype=np.float32)
    params = SamplingParams(temperature=0.0, logprobs=1, logit_bias={1: 50.0})
    result = sample(logits, params, NONE, 0, 0)
    assert result.token_id == 1
    assert result.top[0][0] == 0
    assert result.logprob == pytest.approx(-9.3133, abs=1e-3)
    assert sample(logits, SamplingParams(logprobs=0), NONE, 0, 0).logprob is not None


@pytest.mark.parametrize("place", [0, 63, 64, 699])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf])
@pytest.mark.parametrize("setting", [{}, {"temperature": 0.0}, {"top_k": 0}], ids=str)
def test_logits_that_are_not_numbers(setting: dict[str, Any], value: float, place: int) -> None:
    logits = row("normal", 700, 0)
    logits[place] = value
    if value != value:
        logits[place] = np.copysign(np.float32(np.nan), np.float32(1 if place else -1))
    with pytest.raises(EngineError, match="NaN or \\+inf"):
        sample(logits, SamplingParams(**setting), NONE, 0, 0)


@pytest.mark.parametrize("n_vocab", [0, 1, 700])
def test_nothing_left_to_choose(n_vocab: int) -> None:
    excluded = np.full(n_vocab, -np.inf, dtype=np.float32)
    with pytest.raises(EngineError, match="no token is left"):
        sample(excluded, SamplingParams(), NONE, 0, 0)
    if n_vocab:
        nobody = words(np.zeros(n_vocab, dtype=bool))
        with pytest.raises(EngineError, match="no token is left"):
            sample(row("normal", n_vocab, 0), SamplingParams(), NONE, 0, 0, nobody)


def test_ids_outside_the_vocabulary() -> None:
    logits = row("normal", 64, 0)
    penalized = SamplingParams(repeat_penalty=1.1)
    for wrong in (-1, 64, 2**31 - 1):
        with pytest.raises(EngineError, match=r"history.*64 tokens"):
            sample(logits, penalized, np.array([wrong], dtype=np.int32), 0, 0)
    # and the counts it keeps are clean afterwards
    history = np.array([1, 1], dtype=np.int32)
    assert sample(logits, penalized, history, 0, 0) == Sampler(penalized)(logits, history, 0, 0)
    with pytest.raises(ConfigError, match=r"logit_bias.*64 tokens"):
        sample(logits, SamplingParams(logit_bias={64: 1.0}), NONE, 0, 0)
