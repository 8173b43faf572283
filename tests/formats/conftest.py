"""Where the shared data and the default model are, or why a test skips."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def shared() -> Path:
    """The folder with real vocabularies and texts."""
    folder = Path(os.environ.get("INSULA_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip("the shared folder is not there: set INSULA_SHARED")
    return folder
