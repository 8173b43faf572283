"""The measure itself, on distributions whose divergence is known."""

from __future__ import annotations

import numpy as np
import pytest

from oracle.divergence import divergence, events, log_softmax, ratio_interval

RNG = np.random.default_rng(3)


def logprobs(n, vocabulary):
    return log_softmax(RNG.standard_normal((n, vocabulary)) * 3)


def told(other, n):
    tokens = np.argsort(-other, axis=-1)[:, :n]
    return tokens, np.take_along_axis(other, tokens, axis=-1)


def test_log_softmax():
    x = np.array([[1000.0, 1000.0 + np.log(3)]])
    np.testing.assert_allclose(np.exp(log_softmax(x)), [[0.25, 0.75]])


def test_the_whole_vocabulary_gives_the_textbook_value():
    p, q = logprobs(20, 50), logprobs(20, 50)
    tokens, values = told(q, 50)
    found = divergence(p, tokens, values, tokens[:, 0])
    np.testing.assert_allclose(found.kl, (np.exp(p) * (p - q)).sum(axis=-1), rtol=1e-6)


def test_a_coarser_look_never_exceeds_it():
    p, q = logprobs(50, 80), logprobs(50, 80)
    last = np.zeros(50)
    for n in (1, 5, 20, 79):
        tokens, values = told(q, n)
        found = divergence(p, tokens, values, tokens[:, 0]).kl
        assert np.all(found >= last - 1e-9)
        last = found
    assert np.all(last <= (np.exp(p) * (p - q)).sum(axis=-1) + 1e-9)


def test_equal_distributions():
    p = logprobs(10, 40)
    tokens, values = told(p, 8)
    found = divergence(p, tokens, values, tokens[:, 0])
    np.testing.assert_allclose(found.kl, 0, atol=1e-12)
    assert found.row()["flips"] == 0
    np.testing.assert_allclose(events(values).sum(axis=-1), 1)


def test_flips_and_margins():
    p = np.log([[0.6, 0.4], [0.3, 0.7]])
    q = np.log([[0.4, 0.6], [0.2, 0.8]])
    tokens, values = told(q, 2)
    found = divergence(p, tokens, values, tokens[:, 0])
    assert found.flips.tolist() == [True, False]
    np.testing.assert_allclose(found.margins, np.log(0.6 / 0.4))
    assert found.row()["same_top"] == 0.5


def test_interval_holds_the_ratio():
    ours, theirs = RNG.uniform(1, 2, 500), RNG.uniform(2, 4, 500)
    low, high = ratio_interval(ours, theirs)
    assert low < ours.mean() / theirs.mean() < high
    assert high - low < 0.1
    assert ratio_interval(ours, ours) == pytest.approx([1, 1])
