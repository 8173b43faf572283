"""The models that the tasks are tried on: small, random, always the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from insula import LLM
from tiny_chat_model import write_tiny
from tiny_encoder import write_encoder


@pytest.fixture(scope="session")
def base_llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    """Generates text, has no chat template."""
    path = write_tiny(tmp_path_factory.mktemp("base") / "base.gguf", template=None, name="Base")
    with LLM(path) as llm:
        yield llm


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = tmp_path_factory.mktemp("head") / "sentiment.gguf"
    with LLM(write_encoder(path, labels=("bad", "so so", "good"))) as llm:
        yield llm


@pytest.fixture(scope="session")
def nli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = tmp_path_factory.mktemp("nli") / "nli.gguf"
    with LLM(write_encoder(path, labels=("contradiction", "neutral", "entailment"))) as llm:
        yield llm


@pytest.fixture(scope="session")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    with LLM(write_encoder(tmp_path_factory.mktemp("embed") / "embed.gguf")) as llm:
        yield llm


@pytest.fixture(params=["chat", "base"])
def any_llm(request: pytest.FixtureRequest, shared_llm: LLM, base_llm: LLM) -> LLM:
    return shared_llm if request.param == "chat" else base_llm


@pytest.fixture
def default_path() -> Path:
    from default_model import WHERE_TO_GET_IT, find_default_model

    path = find_default_model()
    if path is None:
        pytest.skip(WHERE_TO_GET_IT)
    return path
