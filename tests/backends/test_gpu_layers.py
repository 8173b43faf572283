"""Layers on a GPU: passed to llama.cpp where it has one, else refused or noted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from insula import LLM
from insula.engine.backends import llamacpp_devices
from insula.engine.backends.llamacpp_server import _params
from insula.errors import ConfigError, UnsupportedError

PLAIN: dict[str, Any] = {"temperature": 0.0, "max_tokens": 4}


@pytest.fixture
def no_gpu() -> None:
    if llamacpp_devices.gpus():
        pytest.skip("there is a GPU here")


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp says that it sees a GPU; a build without one passes over the layers."""
    import xllamacpp

    kinds = xllamacpp.ggml_backend_dev_type
    device = {
        "name": "CUDA0",
        "description": "A GPU",
        "type": kinds.GGML_BACKEND_DEVICE_TYPE_GPU,
    }
    monkeypatch.setattr(xllamacpp, "get_device_info", lambda: [device])


@pytest.mark.parametrize("layers", [None, 0, 7, -1])
def test_llama_cpp_is_told(tiny_model: Path, layers: int | None) -> None:
    params = _params(tiny_model, n_ctx=64, threads=1, gpu_layers=layers)
    default = _params(tiny_model, n_ctx=64, threads=1, gpu_layers=None).n_gpu_layers
    assert params.n_gpu_layers == (default if layers is None else layers)


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_auto_runs_on_the_cpu_and_says_so(tiny_model: Path) -> None:
    with LLM(tiny_model, n_ctx=64, gpu_layers=-1) as llm:
        assert llm.model_info.engine == "native"
        report = llm.generate("a", **PLAIN).report
    assert any(
        "gpu_layers=-1 has no effect" in line and "sees no GPU" in line for line in report.notes
    )


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_llamacpp_refuses(tiny_model: Path) -> None:
    with pytest.raises(UnsupportedError, match="llamacpp backend cannot take gpu_layers=3") as info:
        LLM(tiny_model, engine="llamacpp", gpu_layers=3)
    assert info.value.backend == "llamacpp"
    LLM(tiny_model, engine="llamacpp", n_ctx=64, gpu_layers=0).close()


def test_native_has_none(tiny_model: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"native backend has no gpu.*llamacpp"):
        LLM(tiny_model, engine="native", gpu_layers=1)


@pytest.mark.usefixtures("pretended")
def test_with_a_gpu_auto_takes_llamacpp_and_says_why(tiny_model: Path) -> None:
    with LLM(tiny_model, n_ctx=64, gpu_layers=2) as llm:
        info = llm.model_info
        assert info.engine == "llamacpp"
        assert "gpu_layers=2 was asked for" in info.engine_reason
        assert "2 layers on CUDA0 (A GPU)" in llm.generate("a", **PLAIN).report.notes
    with LLM(tiny_model, n_ctx=64, engine="llamacpp") as llm:
        assert "all layers on CUDA0 (A GPU)" in llm.model_info.notes


@pytest.mark.parametrize("layers", [-2, True, "all", 10**9, 1.5])
def test_values(tiny_model: Path, layers: Any) -> None:
    with pytest.raises(ConfigError, match="gpu_layers: found"):
        LLM(tiny_model, gpu_layers=layers)
