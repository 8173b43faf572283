"""A home of its own for each test, a hub on the loopback, and no waiting."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hub_server import HubServer
from insula.hub.transport import Retry

_CLEARED = (
    *("HF_TOKEN", "HF_TOKEN_PATH", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT"),
    *("INSULA_OFFLINE", "INSULA_MODELS", "INSULA_LANG", "LC_ALL", "LC_MESSAGES", "LANG"),
    *("OLLAMA_MODELS", "LMSTUDIO_MODELS", "GPT4ALL_MODELS", "LLAMA_CACHE"),
    *("XDG_DATA_HOME", "XDG_CACHE_HOME", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"),
    *("http_proxy", "https_proxy", "all_proxy", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"),
    *("UV_DEFAULT_INDEX", "UV_INDEX_URL", "INSULA_LOCK", "INSULA_TRUSTED_KEYS"),
    *("INSULA_OLLAMA_REGISTRY", "INSULA_HUB_CONNECTIONS"),
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """INSULA_HOME; HOME is empty too, so that nothing of this machine is seen."""
    for name in _CLEARED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("INSULA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "user"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.chdir(tmp_path)  # where insula.lock would be
    return tmp_path / "home"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        monkeypatch.setenv("INSULA_OLLAMA_REGISTRY", server.endpoint)
        yield server


@pytest.fixture
def quick() -> Retry:
    """The retry rules of the real thing with pauses too short to notice."""
    return Retry(first=0.001, longest=0.002, connect_timeout=5, read_timeout=5)
