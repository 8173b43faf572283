"""Models for the tests of backends: a tiny one that native refuses, and the default model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.xverse_checkpoint import write_xverse
from default_model import WHERE_TO_GET_IT, find_default_model
from insula.engine.backends.llamacpp import LlamaCppEngine

xllamacpp = pytest.importorskip("xllamacpp", reason="the llamacpp extra is not installed")


@pytest.fixture(scope="session")
def xverse_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_xverse(tmp_path_factory.mktemp("xverse") / "tiny-xverse.gguf")


@pytest.fixture(scope="module")
def xverse(xverse_path: Path) -> Iterator[LlamaCppEngine]:
    with LlamaCppEngine(xverse_path, n_ctx=256, threads=1) as engine:
        yield engine


@pytest.fixture(scope="session")
def default_model() -> Path:
    path = find_default_model()
    if path is None:
        pytest.skip(WHERE_TO_GET_IT)
    return path
