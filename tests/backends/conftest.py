"""Models for the tests of backends: a tiny one that native refuses, and the default model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.qwen2_checkpoint import write_qwen2
from default_model import WHERE_TO_GET_IT, find_default_model
from insula.engine.backends.llamacpp import LlamaCppEngine

xllamacpp = pytest.importorskip("xllamacpp", reason="the llamacpp extra is not installed")


@pytest.fixture(scope="session")
def qwen2_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qwen2(tmp_path_factory.mktemp("qwen2") / "tiny-qwen2.gguf")


@pytest.fixture(scope="module")
def qwen2(qwen2_path: Path) -> Iterator[LlamaCppEngine]:
    with LlamaCppEngine(qwen2_path, n_ctx=256, threads=1) as engine:
        yield engine


@pytest.fixture(scope="session")
def default_model() -> Path:
    path = find_default_model()
    if path is None:
        pytest.skip(WHERE_TO_GET_IT)
    return path
