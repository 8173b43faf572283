"""Every native sampler, alone and in any order, against its NumPy definition."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from insula.engine.sampling import SAMPLERS, Sampler
from insula.ops import reference_sampling as reference
from insula.types import SamplingParams

from .cases import SHAPES, SIZES, row, words

NONE = np.empty(0, dtype=np.int32)
OFF: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


# The p of top_p and typical_p, the n of top_n_sigma and the thresholds below are no fractions of
# small numbers: where n equal tokens sum to exactly p, rounding decides, and differently in two
# ways of adding.


def compare(
    logits: npt.NDArray[np.float32],
    params: SamplingParams,
    history: npt.NDArray[np.int32] = NONE,
    allowed: npt.NDArray[np.uint32] | None = None,
    *,
    breakers: Sequence[Sequence[int]] = (),
    **state: Any,
) -> int:
    """Assert that the candidates are the defined ones; how many there are.

    state: position, seed, mirostat_mu.
    """
    expected_V = reference.distribution(
        logits, params, history, allowed, breakers=breakers, **state
    )
    sampler = Sampler(params, breakers=breakers)
    ids, probabilities = sampler.distribution(logits, history, allowed, **state)
    assert (np.diff(ids) > 0).all()
    actual_V = np.zeros(len(logits))
    actual_V[ids] = probabilities
    if params.dynatemp_range > 0:
        # where one token has nearly all the mass, the entropy is what rounding leaves of it
        np.testing.assert_allclose(actual_V, expected_V, rtol=1e-6, atol=1e-9)
        return len(ids)
    # below 1e-300 exp ends in 0 natively and in denormals in NumPy
    np.testing.assert_array_equal(
        np.flatnonzero(actual_V > 1e-300), np.flatnonzero(expected_V > 1e-300)
    )
    np.testing.assert_allclose(actual_V, expected_V, rtol=1e-11, atol=1e-300)
    assert abs(probabilities.sum() - 1) < 1e-9
    return len(ids)


@pytest.mark.parametrize(
    "setting",
    [
        {},
        {"temperature": 0.0},
        {"temperature": 1e-300},
        {"temperature": 0.7},
        {"temperature": 1.9},
        {"temperature": 100.0},
        {"top_k": 1},
        {"top_k": 3},
        {"top_k": 40},
        {"top_k": 64},
        {"top_k": 10**12},
        {"top_p": 0.0},
        {"top_p": 0.3137},
        {"top_p": 0.9137},
        {"top_p": 0.99999},
        {"min_p": 1.0},
        {"min_p": 0.05},
        {"min_p": 1e-12},
        {"typical_p": 0.0},
        {"typical_p": 0.2137},
        {"typical_p": 0.9537},
        {"top_n_sigma": 0.0},
        {"top_n_sigma": 1.1371},
        {"top_n_sigma": 3.0137},
        {"xtc_probability": 1.0, "xtc_threshold": 0.0},
        {"xtc_probability": 1.0, "xtc_threshold": 0.01137},
        {"xtc_probability": 1.0, "xtc_threshold": 0.31137},
        {"xtc_probability": 1.0, "xtc_threshold": 0.51},
        {"dynatemp_range": 0.7},
        {"dynatemp_range": 5.0, "dynatemp_exponent": 0.0},
        {"dynatemp_range": 2.0, "dynatemp_exponent": 0.37, "temperature": 1.5},
        {"mirostat": 2},
        {"mirostat": 2, "mirostat_tau": 0.937, "temperature": 0.7},
    ],
    ids=str,
)
def test_each_sampler(setting: dict[str, Any]) -> None:
    for shape, n_vocab, seed in itertools.product(SHAPES, SIZES, range(2)):
        kept = compare(row(shape, n_vocab, seed), SamplingParams(**(OFF | setting)))
        if "top_k" in setting:
            assert kept <= setting["top_k"]


@pytest.mark.parametrize("repeat_last_n", [0, 1, 5, 64, -1])
@pytest.mark.parametrize(
    "setting",
    [
        {"repeat_penalty": 1.3},
        {"repeat_penalty": 0.5},
        {"presence_penalty": 0.8},
        {"frequency_penalty": 0.4},
        {"frequency_penalty": -0.4, "presence_penalty": -1.0, "repeat_penalty": 100.0},
    ],
    ids=str,
)
def test_penalties(setting: dict[str, Any], repeat_last_n: int) -> None:
    for shape, n_vocab in itertools.product(SHAPES, (1, 40, 700)):
        history = np.random.default_rng(n_vocab).integers(0, n_vocab, 150).astype(np.int32)
        params = SamplingParams(**(OFF | setting), repeat_last_n=repeat_last_n)
        compare(row(shape, n_vocab, 1), params, history)


def test_penalties_by_hand() -> None:
    logits = np.array([2.0, -2.0, 1.0, 1.0], dtype=np.float32)
    history = np.array([3, 0, 0, 1], dtype=np.int32)
    params = SamplingParams(
        **OFF,
        repeat_penalty=2.0,
        presence_penalty=0.25,
        frequency_penalty=0.5,
        repeat_last_n=3,  # the 3 has left the window
    )
    ids, probabilities = Sampler(params).distribution(logits, history)
    expected = np.exp([2 / 2 - 0.25 - 2 * 0.5, -2 * 2 - 0.25 - 0.5, 1.0, 1.0])
    assert ids.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(probabilities, expected / expected.sum(), rtol=1e-7)


def test_logit_bias_adds_and_forbids() -> None:
    logits = row("normal", 700, 4)
    best = int(logits.argmax())
    compare(logits, SamplingParams(**OFF, logit_bias={3: 4.5, 699: -2.0, best: -np.inf}))
    greedy = SamplingParams(temperature=0.0, logit_bias={best: -np.inf, 5: 100.0})
    ids, _ = Sampler(greedy).distribution(logits)
    assert ids.tolist() == [5]
    # saturates rather than overflows
    compare(row("huge", 700, 4), SamplingParams(**OFF, logit_bias={int(best): 1e30}))


@pytest.mark.parametrize("n_vocab", [1, 31, 32, 33, 700])
def test_mask(n_vocab: int) -> None:
    rng = np.random.default_rng(n_vocab)
    for density in (0.02, 0.5, 1.0):
        bits = rng.random(n_vocab) < density
        bits[rng.integers(n_vocab)] = True
        for params in (SamplingParams(), SamplingParams(**OFF), SamplingParams(temperature=0.0)):
            kept = compare(row("normal", n_vocab, 2), params, allowed=words(bits))
            ids, _ = Sampler(params).distribution(row("normal", n_vocab, 2), NONE, words(bits))
            assert bits[ids].all()
            assert kept <= bits.sum()


def test_every_order_of_every_sampler() -> None:
    """Random orders of all and of some, with random settings."""
    draw = random.Random(20)
    orders = [tuple(draw.sample(SAMPLERS, len(SAMPLERS))) for _ in range(900)]
    orders += [tuple(draw.sample(SAMPLERS, draw.randrange(len(SAMPLERS)))) for _ in range(400)]
    sizes: set[int] = set()
    for number, order in enumerate(orders):
        n_vocab = draw.choice(SIZES[:-1])
        params = SamplingParams(
            samplers=order,
            temperature=draw.choice([0.0, 0.3, 0.8, 1.5]),
            top_k=draw.choice([0, 2, 20, 300]),
            top_p=draw.choice([1.0, 0.9537, 0.6137]),
            min_p=draw.choice([0.0, 0.02, 0.3]),
            typical_p=draw.choice([1.0, 0.9137, 0.4137]),
            repeat_penalty=draw.choice([1.0, 1.2]),
            presence_penalty=draw.choice([0.0, 0.7]),
            frequency_penalty=draw.choice([0.0, -0.3]),
            repeat_last_n=draw.choice([-1, 10]),
            dry_multiplier=draw.choice([0.0, 0.8]),
            dry_allowed_length=draw.choice([0, 1, 2]),
            dry_penalty_last_n=draw.choice([-1, 20]),
            top_n_sigma=draw.choice([-1.0, 1.1371, 2.7137]),
            xtc_probability=draw.choice([0.0, 0.5, 1.0]),
            xtc_threshold=draw.choice([0.01137, 0.10137]),
            dynatemp_range=draw.choice([0.0, 0.0, 0.5]),
            dynatemp_exponent=draw.choice([1.0, 2.5]),
            mirostat=draw.choice([0, 0, 0, 2]),
            mirostat_tau=draw.choice([1.137, 4.137]),
            logit_bias={0: 1.25} if draw.random() < 0.3 else {},
        )
        history = np.random.default_rng(number).integers(0, n_vocab, 30).astype(np.int32)
        logits = row(draw.choice(SHAPES), n_vocab, number)
        breakers = [(draw.randrange(n_vocab),)]
        sizes.add(compare(logits, params, history, breakers=breakers, position=number, seed=3))
    assert len(sizes) > 30  # the settings above do bite in many ways


def test_order_matters() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], dtype=np.float32))
    hot = {"temperature": 4.0, "top_p": 0.8, "top_k": 0, "min_p": 0.0}
    first = Sampler(SamplingParams(**hot, samplers=("temperature", "top_p")))
    last = Sampler(SamplingParams(**hot, samplers=("top_p", "temperature")))
    without = Sampler(SamplingParams(**hot, samplers=("temperature",)))
    assert first.distribution(logits)[0].tolist() == [0, 1, 2]
    assert last.distribution(logits)[0].tolist() == [0, 1]
    assert without.distribution(logits)[0].tolist() == [0, 1, 2, 3]


def test_ties_go_to_the_lower_id() -> None:
    logits = np.zeros(300, dtype=np.float32)
    assert Sampler(SamplingParams(top_k=3, samplers=("top_k",))).distribution(logits)[
        0
    ].tolist() == [0, 1, 2]
    assert Sampler(SamplingParams(temperature=0.0)).distribution(logits)[0].tolist() == [0]
    logits[[299, 70, 130]] = 1.0
    assert Sampler(SamplingParams(temperature=0.0)).distribution(logits)[0].tolist() == [70]
    logits[[0, 1]] = [-0.0, 0.0]  # equal, though their bits differ
    assert Sampler(SamplingParams(top_k=4, samplers=("top_k",))).distribution(logits)[
        0
    ].tolist() == [0, 70, 130, 299]
