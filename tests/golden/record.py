"""Keeps what tests of the support table measured, where somebody asks for it.

With INSULA_RECORD=FILE each test that compares a golden writes a line there: which comparison, of
which golden, and how far off it was. `support_table` puts them beside the goldens.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np


def record(claim: str, name: str, off: float) -> None:
    """One line, whole whoever else writes."""
    path = os.environ.get("INSULA_RECORD")
    if path:
        line = json.dumps({"claim": claim, "golden": name, "off": float(f"{off:.1e}")})
        with Path(path).open("ab", buffering=0) as file:
            file.write(f"{line}\n".encode())


def close(claim: str, name: str, found: np.ndarray, wanted: np.ndarray, atol: float) -> None:
    """`assert_allclose` in absolute terms, recorded if it held."""
    np.testing.assert_allclose(found, wanted, rtol=0, atol=atol)
    record(claim, name, float(np.abs(found - wanted).max()))
