"""Decoding: native, NumPy, ggml and the gguf package agree on every bit."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from insula import _native
from insula.formats.ggml_types import DEQUANTIZABLE, GGMLType
from insula.ops import reference_quants
from quants.ggml import Ggml

KINDS = sorted(DEQUANTIZABLE)
BLOCKED = [kind for kind in KINDS if kind.is_quantized]
ROWS, COLS = 64, 512


def random_blocks(kind: GGMLType, seed: int = 0) -> NDArray[np.uint8]:
    """Every byte pattern is a block: scales beyond reason, NaNs and infinities among them."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, ROWS * kind.row_bytes(COLS), dtype=np.uint8)


def assert_same_bits(a: NDArray[np.float32], b: NDArray[np.float32]) -> None:
    """Equal as bit patterns; NaNs only as NaNs (their payload is the processor's affair)."""
    nan = np.isnan(a)
    np.testing.assert_array_equal(nan, np.isnan(b))
    np.testing.assert_array_equal(a.view(np.uint32)[~nan], b.view(np.uint32)[~nan])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_native_is_the_reference(kind: GGMLType) -> None:
    raw = random_blocks(kind)
    with np.errstate(all="ignore"):
        expected = reference_quants.dequantize(kind, raw, ROWS * COLS)
    assert np.isfinite(expected).mean() > 0.8
    for threads in (1, 2, 5):
        assert_same_bits(_native.dequantize(kind, raw, ROWS * COLS, threads), expected)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_gguf_package_agrees(kind: GGMLType) -> None:
    gguf = pytest.importorskip("gguf")
    raw = random_blocks(kind)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(
            raw.reshape(ROWS, -1), gguf.GGMLQuantizationType(int(kind))
        )
    assert_same_bits(_native.dequantize(kind, raw, ROWS * COLS), expected.reshape(-1))


@pytest.mark.parametrize("kind", BLOCKED, ids=lambda kind: kind.name)
def test_ggml_agrees(kind: GGMLType) -> None:
    raw = random_blocks(kind)
    expected = Ggml().dequantize(kind, raw, ROWS * COLS)
    assert_same_bits(_native.dequantize(kind, raw, ROWS * COLS), expected)


def test_every_half_precision_number() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16)
    expected = halves.view(np.float16).astype(np.float32)
    assert_same_bits(_native.dequantize(GGMLType.F16, halves.view(np.uint8), 1 << 16), expected)
    # And back: each is its own nearest.
    finite = np.isfinite(expected)
    back = _native.quantize(GGMLType.F16, expected[finite][None])
    np.testing.assert_array_equal(back.view(np.uint16), halves[finite])


def test_types_table_agrees_with_the_gguf_package() -> None:
    gguf = pytest.importorskip("gguf")
    theirs = {int(kind): (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    for kind in GGMLType:
        if kind is GGMLType.Q8_1:
            continue  # never in files; the package counts its two halves as floats
        assert theirs[int(kind)] == (kind.name, kind.block_size, kind.block_bytes)


@pytest.mark.parametrize(
    ("type_id", "nbytes", "n"),
    [
        (8, 34, 31),  # not whole blocks
        (8, 33, 32),
        (8, 34, 64),
        (8, 68, 32),
        (8, 0, 32),
        (0, 4, 2**62),  # n * 4 wraps around
        (12, 144, 2**63),
        (999, 34, 32),
        (-1, 34, 32),
        (16, 66, 256),  # a type that is known and not decoded
    ],
)
def test_sizes_must_agree(type_id: int, nbytes: int, n: int) -> None:
    with pytest.raises(ValueError, match=r"elements of|no ggml type"):
        _native.dequantize(type_id, np.zeros(nbytes, np.uint8), n)


def test_nothing_of_nothing() -> None:
    for kind in KINDS:
        assert _native.dequantize(kind, np.zeros(0, np.uint8), 0).shape == (0,)


def test_any_address() -> None:
    """Blocks need no alignment: a view may begin anywhere."""
    for kind in BLOCKED:
        raw = random_blocks(kind)[: kind.row_bytes(COLS)]
        shifted = np.empty(len(raw) + 1, np.uint8)
        shifted[1:] = raw
        assert_same_bits(
            _native.dequantize(kind, shifted[1:], COLS), _native.dequantize(kind, raw, COLS)
        )
