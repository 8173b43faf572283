"""The default model, where it is on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from default_model import WHERE_TO_GET_IT, find_default_model


@pytest.fixture(scope="session")
def default_model() -> Path:
    path = find_default_model()
    if path is None:
        pytest.skip(WHERE_TO_GET_IT)
    return path
