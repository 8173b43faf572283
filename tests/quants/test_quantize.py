"""Encoding: the legacy formats are ggml's bytes, the searched ones lose no more than ggml's."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from insula import _native
from insula.formats.ggml_types import QUANTIZABLE, GGMLType
from insula.formats.gguf import GGUFFile
from quants.ggml import Ggml
from quants.plain import round_to_nearest

LEGACY = (GGMLType.Q4_0, GGMLType.Q4_1, GGMLType.Q5_0, GGMLType.Q5_1, GGMLType.Q8_0)
SEARCHED = (
    GGMLType.Q2_K,
    GGMLType.Q3_K,
    GGMLType.Q4_K,
    GGMLType.Q5_K,
    GGMLType.Q6_K,
    GGMLType.IQ4_NL,
    GGMLType.IQ4_XS,
    GGMLType.MXFP4,
)
BLOCKED = LEGACY + SEARCHED

RNG = np.random.default_rng(0)
NORMAL_RC = RNG.standard_normal((64, 1024)).astype(np.float32)
#: Heavy tails, rows of very different size, and an offset: unlike any normal distribution.
ODD_RC = (
    RNG.standard_t(2, (64, 1024)) * np.logspace(-6, 2, 64)[:, None]
    + np.linspace(-1, 1, 64)[:, None]
).astype(np.float32)


def error(
    kind: GGMLType,
    blocks: NDArray[np.uint8],
    x: NDArray[np.float32],
    w: NDArray[np.float32] | None = None,
) -> float:
    """Root mean square error, weighted by column."""
    off = _native.dequantize(kind, blocks, x.size).reshape(x.shape).astype(np.float64) - x
    weights = np.ones(x.shape[1]) if w is None else w.astype(np.float64)
    return float(np.sqrt((off * off * weights).sum() / (weights.sum() * len(x))))


@pytest.mark.parametrize("x", [NORMAL_RC, ODD_RC], ids=["normal", "odd"])
@pytest.mark.parametrize("kind", LEGACY, ids=lambda kind: kind.name)
def test_legacy_formats_are_ggmls_bytes(kind: GGMLType, x: NDArray[np.float32]) -> None:
    np.testing.assert_array_equal(_native.quantize(kind, x), Ggml().quantize(kind, x))


@pytest.mark.parametrize("kind", LEGACY, ids=lambda kind: kind.name)
def test_legacy_formats_are_the_gguf_packages_bytes(kind: GGMLType) -> None:
    gguf = pytest.importorskip("gguf")
    expected = gguf.quants.quantize(NORMAL_RC, gguf.GGMLQuantizationType(int(kind)))
    np.testing.assert_array_equal(_native.quantize(kind, NORMAL_RC), expected.reshape(-1))


@pytest.mark.parametrize("x", [NORMAL_RC, ODD_RC], ids=["normal", "odd"])
@pytest.mark.parametrize("kind", SEARCHED, ids=lambda kind: kind.name)
def test_searched_formats_lose_no_more_than_ggmls(kind: GGMLType, x: NDArray[np.float32]) -> None:
    ours, theirs = _native.quantize(kind, x), Ggml().quantize(kind, x)
    for row in (slice(None), slice(0, 1), slice(-1, None)):
        part = x[row]
        a = error(kind, ours.reshape(len(x), -1)[row].reshape(-1), part)
        b = error(kind, theirs.reshape(len(x), -1)[row].reshape(-1), part)
        # A whole matrix: not worse. One row, where luck counts: not much worse.
        assert a <= b * (1.0005 if len(part) > 1 else 1.03)


@pytest.mark.parametrize("x", [NORMAL_RC, ODD_RC], ids=["normal", "odd"])
@pytest.mark.parametrize(
    "kind", [kind for kind in SEARCHED if kind is not GGMLType.Q6_K], ids=lambda kind: kind.name
)
def test_a_search_beats_rounding_to_nearest(kind: GGMLType, x: NDArray[np.float32]) -> None:
    plain = round_to_nearest(kind, x).astype(np.float64) - x
    assert error(kind, _native.quantize(kind, x), x) < np.sqrt((plain * plain).mean())


@pytest.mark.parametrize("kind", BLOCKED, ids=lambda kind: kind.name)
def test_importance_moves_the_error_where_it_matters_less(kind: GGMLType) -> None:
    w = (RNG.random(1024) ** 4 + 1e-3).astype(np.float32)
    ours = _native.quantize(kind, NORMAL_RC, w)
    theirs = Ggml().quantize(kind, NORMAL_RC, w)
    assert error(kind, ours, NORMAL_RC, w) <= error(kind, theirs, NORMAL_RC, w) * 1.0005
    if kind is not GGMLType.Q8_0:
        plain = _native.quantize(kind, NORMAL_RC)
        assert error(kind, ours, NORMAL_RC, w) < error(kind, plain, NORMAL_RC, w)


def test_real_weights() -> None:
    """SmolLM2's own: its Q8_0 embeddings and Q4_1 matrices, as far as they still tell."""
    path = Path(
        os.environ.get("INSULA_TEST_MODEL", "~/.cache/insula-dev/SmolLM2-135M-Instruct.Q4_1.gguf")
    ).expanduser()
    if not path.is_file():
        pytest.skip("the default model is not here: set INSULA_TEST_MODEL to its file")
    ggml = Ggml()
    with GGUFFile.open(path) as file:
        for name in ("token_embd.weight", "blk.7.ffn_down.weight"):
            x = file.dequantize(name).reshape(-1, 768)[:512]
            for kind in SEARCHED:
                ours, theirs = _native.quantize(kind, x), ggml.quantize(kind, x)
                assert error(kind, ours, x) <= error(kind, theirs, x) * 1.0005


#: What a format loses on normal data, as measured with llama.cpp's reference quantizers. Holds
#: without the oracle, so that a change for the worse is seen anywhere.
LOSS = {
    GGMLType.Q4_0: 0.0862,
    GGMLType.Q4_1: 0.0784,
    GGMLType.Q5_0: 0.0430,
    GGMLType.Q5_1: 0.0382,
    GGMLType.Q8_0: 0.0054,
    GGMLType.Q2_K: 0.2962,
    GGMLType.Q3_K: 0.1516,
    GGMLType.Q4_K: 0.0716,
    GGMLType.Q5_K: 0.0362,
    GGMLType.Q6_K: 0.0178,
    GGMLType.IQ4_NL: 0.0766,
    GGMLType.IQ4_XS: 0.0771,
    GGMLType.MXFP4: 0.1157,
}


@pytest.mark.parametrize("kind", BLOCKED, ids=lambda kind: kind.name)
def test_loss_on_normal_data(kind: GGMLType) -> None:
    assert error(kind, _native.quantize(kind, NORMAL_RC), NORMAL_RC) <= LOSS[kind]


@pytest.mark.parametrize("kind", sorted(QUANTIZABLE), ids=lambda kind: kind.name)
def test_threads_change_nothing(kind: GGMLType) -> None:
    x = np.tile(ODD_RC, (4, 1))
    w = np.linspace(0, 1, x.shape[1], dtype=np.float32)
    for weights in (None, w):
        one = _native.quantize(kind, x, weights, 1)
        assert all((_native.quantize(kind, x, weights, n) == one).all() for n in (2, 3, 8))
    # And a row does not depend on its neighbours.
    alone = np.concatenate([_native.quantize(kind, row[None]) for row in x])
    np.testing.assert_array_equal(alone, _native.quantize(kind, x))


@pytest.mark.parametrize("kind", BLOCKED, ids=lambda kind: kind.name)
def test_quantizing_again_is_stable(kind: GGMLType) -> None:
    """What a format already holds it keeps nearly: the second loss is small beside the first."""
    once = _native.quantize(kind, NORMAL_RC)
    decoded = _native.dequantize(kind, once, NORMAL_RC.size).reshape(NORMAL_RC.shape)
    twice = _native.quantize(kind, decoded)
    assert error(kind, twice, decoded) < 0.75 * error(kind, once, NORMAL_RC)


def test_plain_formats_are_numpys() -> None:
    x = ODD_RC
    assert _native.quantize(GGMLType.F32, x).tobytes() == x.tobytes()
    assert _native.quantize(GGMLType.F16, x).tobytes() == x.astype(np.float16).tobytes()
    bits = x.view(np.uint32).astype(np.uint64)
    expected = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    assert _native.quantize(GGMLType.BF16, x).tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", BLOCKED, ids=lambda kind: kind.name)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(kind: GGMLType, bad: float) -> None:
    x = NORMAL_RC.copy()
    x[3, 700] = bad
    with pytest.raises(ValueError, match="row 3 holds a NaN or an infinity"):
        _native.quantize(kind, x)


@pytest.mark.parametrize(
    "kind", sorted(QUANTIZABLE - {GGMLType.F32, GGMLType.BF16}), ids=lambda kind: kind.name
)
def test_values_beyond_a_formats_scale(kind: GGMLType) -> None:
    x = NORMAL_RC.copy()
    x[5] = 1e38
    with pytest.raises(ValueError, match="row 5 holds values too large"):
        _native.quantize(kind, x)


@pytest.mark.parametrize("kind", BLOCKED, ids=lambda kind: kind.name)
@pytest.mark.parametrize("scale", [0.0, 1e-45, 1e-38, 1e-30, 1e-8, 1e-4, 1e3])
def test_any_magnitude(kind: GGMLType, scale: float) -> None:
    x = (NORMAL_RC * np.float32(scale)).astype(np.float32)
    off = error(kind, _native.quantize(kind, x), x)
    # Scales are halves: below 2^-24 a block becomes zeros, and near it is coarse.
    assert off <= max(max(0.1, 1.2 * LOSS[kind]) * scale, 4e-7)


edges = st.sampled_from([0.0, -0.0, 1e-45, 1e-38, 1e-8, 6e-8, 1.0, -1.0, 3.0, 1e4, -6e4])


@settings(max_examples=150, deadline=None)
@example([0.0] * 8 + [1e4, -6e4], GGMLType.Q4_1, True)  # the best minimum is beyond float16
@given(
    st.lists(st.one_of(st.floats(-1e4, 1e4, width=32), edges), min_size=1, max_size=24),
    st.sampled_from(sorted(QUANTIZABLE)),
    st.booleans(),
)
def test_any_values(values: list[float], kind: GGMLType, weighted: bool) -> None:
    x = np.resize(np.array(values, dtype=np.float32), (1, 256))
    w = np.abs(x[0])[::-1].copy() if weighted else None
    back = _native.dequantize(kind, _native.quantize(kind, x, w), 256)
    assert np.isfinite(back).all()
    if not weighted:
        # No format loses more of a value than a fraction of the largest one in its block.
        worst = {GGMLType.Q2_K: 0.6, GGMLType.Q3_K: 0.35, GGMLType.MXFP4: 0.35}.get(kind, 0.15)
        assert np.abs(back - x[0]).max() <= worst * np.abs(x).max() + 1e-6


@pytest.mark.parametrize(
    ("kind", "shape", "w", "words"),
    [
        (8, (2, 33), None, "blocks of 32"),
        (12, (2, 32), None, "blocks of 256"),
        (77, (2, 256), None, "no ggml type"),
        (8, (2, 64), np.ones(32, np.float32), "one weight a column"),
        (8, (2, 64), -np.ones(64, np.float32), "not negative"),
        (8, (2, 64), np.full(64, np.nan, np.float32), "finite"),
    ],
)
def test_what_does_not_fit(
    kind: int, shape: tuple[int, int], w: NDArray[np.float32] | None, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        _native.quantize(kind, np.zeros(shape, np.float32), w)
