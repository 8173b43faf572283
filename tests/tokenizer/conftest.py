"""Where the shared vocabularies are, or why a test skips; and real vocabularies, read once."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from insula.formats.gguf import GGUFFile
from insula.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real vocabularies and texts."""
    folder = Path(os.environ.get("INSULA_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip("the shared folder is not there: set INSULA_SHARED")
    return folder


@cache
def read(path: Path) -> tuple[dict[str, Any], Tokenizer]:
    """Metadata and tokenizer of a vocabulary file."""
    with GGUFFile.open(path) as file:
        metadata = dict(file.metadata)
    return metadata, Tokenizer.from_metadata(metadata)


@pytest.fixture(scope="session")
def vocabulary(shared: Path) -> Any:
    """name -> (metadata, Tokenizer) of ../shared/data/vocabs/ggml-vocab-<name>.gguf."""
    return lambda name: read(shared / "data/vocabs" / f"ggml-vocab-{name}.gguf")
