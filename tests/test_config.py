"""Settings from the environment: defaults, checks, and errors that name the variable."""

from __future__ import annotations

from pathlib import Path

import pytest

from insula.config import parse_size, settings
from insula.errors import ConfigError


def test_an_empty_environment_gives_the_defaults() -> None:
    found = settings({})
    assert found.engine == "auto"
    assert found.cache_dir is None
    assert (found.isa, found.threads, found.kv_memory, found.hub_token) == (None,) * 4
    assert found.hub_endpoint == "https://huggingface.co"
    assert found.language == "en"
    assert not found.offline
    assert found.models == found.home / "models"


def test_what_is_set_is_read() -> None:
    found = settings(
        {
            "INSULA_HOME": "/x/y",
            "INSULA_ENGINE": "reference",
            "INSULA_ISA": "avx2",
            "INSULA_THREADS": "3",
            "INSULA_KV_MEMORY": "2G",
            "INSULA_CACHE_DIR": "/x/z",
            "INSULA_CACHE_DIR_BYTES": "1G",
            "LANG": "es_ES.UTF-8",
            "HF_ENDPOINT": "http://127.0.0.1:8/",
            "HF_HUB_OFFLINE": "1",
        }
    )
    assert found.home == Path("/x/y")
    assert (found.engine, found.isa, found.threads) == ("reference", "avx2", 3)
    assert found.kv_memory == 2 << 30
    assert (found.cache_dir, found.cache_dir_bytes) == (Path("/x/z"), 1 << 30)
    assert found.language == "es"
    assert found.hub_endpoint == "http://127.0.0.1:8"
    assert found.offline
    assert settings({"LANG": "es_ES", "INSULA_LANG": "en"}).language == "en"
    assert "secret" not in repr(settings({"INSULA_STORE_KEY": "secret"}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("INSULA_ENGINE", "magic"),
        ("INSULA_ISA", "avx9"),
        ("INSULA_THREADS", "0"),
        ("INSULA_THREADS", "-1"),
        ("INSULA_THREADS", "many"),
        ("INSULA_THREADS", "²"),
        ("INSULA_KV_MEMORY", "0"),
        ("INSULA_KV_MEMORY", "2X"),
        ("INSULA_CACHE_DIR_BYTES", "all"),
    ],
)
def test_a_wrong_value_is_named_with_its_variable(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name) as caught:
        settings({name: value})
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "size"),
    [("1500", 1500), ("512M", 512 << 20), ("1.5 GiB", 3 << 29), ("2gb", 2 << 30), (7, 7)],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1G", "1e9", "1GG", True, 0])
def test_what_is_no_size(text: object) -> None:
    with pytest.raises(ConfigError):
        parse_size(text)  # type: ignore[arg-type]
