"""Where chat tests find their data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def published_templates() -> dict[str, str]:
    """Name -> Jinja source of the well-known templates in the shared folder."""
    folder = Path(os.environ.get("INSULA_SHARED", ROOT.parent / "shared"), "data/chat-templates")
    if not folder.is_dir():
        pytest.skip("the shared folder with chat templates is not there: set INSULA_SHARED")
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.jinja"))}
