"""Which backend runs a file: the capability table, the choice, and what the reasons say."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from backends.xverse_checkpoint import write_llama_iq3
from insula.engine.backends import CAPABILITIES, Choice, backends, choose, require
from insula.engine.backends import base as base_module
from insula.errors import ConfigError, FormatError, InsulaError, NotFoundError, UnsupportedError


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make a backend look as if it were not installed."""

    def hide(name: str) -> None:
        rows = [
            dataclasses.replace(row, installed=False, why_not=f"{name} is hidden")
            if row.name == name
            else row
            for row in backends()
        ]
        monkeypatch.setattr(base_module, "backends", lambda: tuple(rows))

    return hide


def test_the_table_speaks_only_of_capabilities_that_exist() -> None:
    for row in backends():
        assert row.capabilities <= CAPABILITIES.keys()
        assert row.limits.keys() <= CAPABILITIES.keys()
        assert (row.why_not is None) == row.installed
        for absent in CAPABILITIES.keys() - row.capabilities:
            assert row.limits[absent], f"{row.name} does not say why it has no {absent}"


def test_require_names_the_backend_and_who_can() -> None:
    require("native", "logits")
    with pytest.raises(UnsupportedError, match=r"llamacpp backend has no logits.*native") as info:
        require("llamacpp", "logits")
    assert info.value.backend == "llamacpp"
    with pytest.raises(UnsupportedError, match=r"has no adapters.*backends that have it: native$"):
        require("remote", "adapters")


def test_an_architecture_that_native_lacks_goes_to_llamacpp(xverse_path: Path) -> None:
    choice = choose(xverse_path)
    assert choice.backend == "llamacpp"
    assert "'xverse'" in choice.reason
    assert "native cannot run this model" in choice.reason
    assert "pip install" not in choice.reason


def test_without_any_backend_the_error_says_what_to_install(
    xverse_path: Path, without: Callable[[str], None]
) -> None:
    without("llamacpp")
    with pytest.raises(UnsupportedError) as info:
        choose(xverse_path)
    for part in ("xverse", "native", "llamacpp is hidden"):
        assert part in str(info.value)


def test_the_real_table_names_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_module, "_present", lambda module: False)
    row = base_module.backend("llamacpp")
    assert not row.installed
    assert row.why_not is not None
    assert "pip install 'insula[llamacpp]'" in row.why_not


def test_asking_for_a_backend_by_name(xverse_path: Path) -> None:
    assert choose(xverse_path, "llamacpp") == Choice(backend="llamacpp", reason="asked for")
    with pytest.raises(UnsupportedError, match=r"native backend cannot run this xverse.*llamacpp"):
        choose(xverse_path, "native")
    with pytest.raises(ConfigError, match="'vllm'; allowed: auto, native"):
        choose(xverse_path, "vllm")


def test_asking_for_a_backend_that_is_not_here(
    xverse_path: Path, without: Callable[[str], None]
) -> None:
    without("llamacpp")
    with pytest.raises(UnsupportedError, match="llamacpp backend cannot run: llamacpp is hidden"):
        choose(xverse_path, "llamacpp")


@pytest.mark.parametrize(
    ("content", "error"), [(None, NotFoundError), (b"not a model", InsulaError), (b"", FormatError)]
)
def test_a_file_that_is_no_model(
    tmp_path: Path, content: bytes | None, error: type[Exception]
) -> None:
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error):
        choose(path)


def test_a_format_that_native_lacks_goes_to_llamacpp(tmp_path: Path) -> None:
    path = write_llama_iq3(tmp_path / "iq3.gguf")
    choice = choose(path)
    assert choice.backend == "llamacpp"
    assert "IQ3_S" in choice.reason
    assert "insula quantize" not in choice.reason
