"""The counter-based generator: published vectors, and one uniform per position."""

from __future__ import annotations

import numpy as np
import pytest

from insula import _native
from insula.ops import reference_sampling as reference

# Random123 1.14, tests/kat_vectors, "philox4x32 10": counter, key, result.
# https://github.com/DEShawResearch/random123
PUBLISHED = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


def _hex(text: str) -> tuple[int, ...]:
    return tuple(int(word, 16) for word in text.split())


@pytest.mark.parametrize(("counter", "key", "result"), PUBLISHED)
def test_published_vectors(counter: str, key: str, result: str) -> None:
    assert _native.philox4x32(list(_hex(counter)), list(_hex(key))) == _hex(result)
    assert reference.philox4x32(_hex(counter), _hex(key)) == _hex(result)


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**63 + 17, 2**64 - 1])
@pytest.mark.parametrize("position", [0, 1, 4095, 2**32 - 1, 2**32, 2**40 + 3])
def test_the_uniform_is_the_documented_one(seed: int, position: int) -> None:
    u = _native.uniform_at(seed, position)
    assert u == reference.uniform_at(seed, position)
    assert 0 <= u < 1
    assert u * 2**53 == int(u * 2**53)


def test_uniforms_are_uniform_over_positions_and_over_seeds() -> None:
    n, bins = 40_000, 50
    for draws in (
        [_native.uniform_at(7, position) for position in range(n)],
        [_native.uniform_at(seed, 7) for seed in range(n)],
    ):
        counts = np.histogram(draws, bins=bins, range=(0, 1))[0]
        chi_square = ((counts - n / bins) ** 2 / (n / bins)).sum()
        assert chi_square < 94.0  # 49 degrees of freedom, p = 1e-4
        neighbours = np.corrcoef(draws[:-1], draws[1:])[0, 1]
        assert abs(neighbours) < 4 / np.sqrt(n)
