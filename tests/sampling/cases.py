"""Rows of logits that samplers find hard, made from a seed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SHAPES = ("normal", "ties", "flat", "peaked", "excluded", "huge", "tiny")
SIZES = (1, 2, 31, 64, 67, 701, 4999)


def row(shape: str, n_vocab: int, seed: int) -> npt.NDArray[np.float32]:
    """float32 [n_vocab], with at least one finite value."""
    rng = np.random.default_rng([seed, n_vocab, SHAPES.index(shape)])
    x = rng.standard_normal(n_vocab) * 3
    if shape == "ties":
        x = np.round(x)
    elif shape == "flat":
        x = np.zeros(n_vocab)
    elif shape == "peaked":
        x[rng.integers(n_vocab)] += 25
    elif shape == "excluded":
        x[rng.random(n_vocab) < 0.6] = -np.inf
        x[rng.integers(n_vocab)] = 1.5
    elif shape == "huge":
        x = np.clip(x * 1e38, -3.4e38, 3.4e38)
    elif shape == "tiny":
        x = x * 1e-40
    return x.astype(np.float32)


def words(bits: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint32]:
    """The mask form of `sample`: bit id % 32 of word id // 32."""
    padded = np.zeros((len(bits) + 31) // 32 * 32, dtype=bool)
    padded[: len(bits)] = bits
    return np.packbits(padded, bitorder="little").view("<u4").astype(np.uint32)
