"""The pictures and tables of docs/quantization.md are those of the rows in bench/results/."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from quantization import plain
from quantization_plots import draw

from insula.formats.ggml_types import QUANTIZABLE, GGMLType

ROOT = Path(__file__).resolve().parents[2]
ROWS = json.loads((ROOT / "bench/results/quantization.json").read_text(encoding="utf-8"))


def test_the_pictures_are_the_rows() -> None:
    pictures = draw(ROWS)
    assert len(pictures) == 3
    page = (ROOT / "docs/quantization.md").read_text(encoding="utf-8")
    for name, svg in pictures.items():
        ET.fromstring(svg)
        assert (ROOT / "docs" / name).read_text(encoding="utf-8") == svg
        assert f"({name})" in page


def test_the_tables_are_the_rows() -> None:
    page = (ROOT / "docs/quantization.md").read_text(encoding="utf-8")
    for row in ROWS["formats"]:
        kind = GGMLType[row["name"]]
        assert row["bits"] == 8 * kind.block_bytes / kind.block_size
        assert f"| {row['name']} | {row['bits']:g} | {100 * row['error']:.2f} % |" in page
    known = {kind.name for kind in QUANTIZABLE if kind.is_quantized}
    assert {row["name"] for row in ROWS["formats"]} == known - {ROWS["stored_as"]}
    for row in ROWS["divergence"]:
        a, b = row["plain"], row["importance"]
        assert f"| {row['format']} | {a['kl']:.4f} | {b['kl']:.4f} |" in page


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_plain_rounding(bits: int) -> None:
    """Within half a step of either kind; asymmetric hits both ends of a group."""
    x = np.random.default_rng(bits).standard_normal((50, 32))
    largest = np.abs(x).max(axis=1, keepdims=True)
    off = np.abs(plain(x, bits, symmetric=True) - x)
    inside = np.abs(x) <= largest * (1 - 2 ** (1 - bits))
    assert (off <= largest / 2**bits + 1e-12)[inside].all()
    y = plain(x, bits, symmetric=False)
    step = (x.max(axis=1) - x.min(axis=1)) / (2**bits - 1)
    assert (np.abs(y - x) <= step[:, None] / 2 + 1e-12).all()
    np.testing.assert_allclose(y.min(axis=1), x.min(axis=1))
    np.testing.assert_allclose(y.max(axis=1), x.max(axis=1))
