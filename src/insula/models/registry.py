"""Which architectures the native engine knows: one row each, one file each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from insula.errors import UnsupportedError
from insula.models import gemma2, gemma3, gpt_oss, granite, llama, olmo2, phi3, qwen3, smollm3
from insula.models.checkpoint import OTHER_BACKEND, Checkpoint, TensorShape
from insula.ops.graph import Graph


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One row: general.architecture's value, the file that maps it, and who uses it."""

    name: str
    graph: Callable[[Checkpoint], Graph]
    models: str


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        row.name: row
        for row in (
            Architecture(
                name="llama",
                graph=llama.graph,
                models="Llama 1-3.x, Mistral, Mixtral, SmolLM2, TinyLlama and their kin",
            ),
            Architecture(
                name="qwen2", graph=partial(llama.graph, style="neox"), models="Qwen2, Qwen2.5"
            ),
            Architecture(name="qwen3", graph=qwen3.graph, models="Qwen3, dense"),
            Architecture(
                name="qwen3moe",
                graph=partial(qwen3.graph, mixture=True),
                models="Qwen3 with experts (30B-A3B, 235B-A22B)",
            ),
            Architecture(name="gpt-oss", graph=gpt_oss.graph, models="gpt-oss 20B and 120B"),
            Architecture(name="gemma2", graph=gemma2.graph, models="Gemma 2"),
            Architecture(name="gemma3", graph=gemma3.graph, models="Gemma 3, text"),
            Architecture(name="granite", graph=granite.graph, models="Granite 3, dense"),
            Architecture(name="smollm3", graph=smollm3.graph, models="SmolLM3"),
            Architecture(name="olmo2", graph=olmo2.graph, models="OLMo 2"),
            Architecture(name="phi3", graph=phi3.graph, models="Phi-3, Phi-3.5, Phi-4"),
        )
    }
)


class ModelSource(Protocol):
    """A file of metadata and tensors; `formats.gguf.GGUFFile` is one."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """GGUF metadata by key."""
        ...

    @property
    def tensors(self) -> Mapping[str, TensorShape]:
        """Tensor descriptions by name."""
        ...

    def dequantize(self, name: str) -> NDArray[np.float32]:
        """A tensor's values, float32."""
        ...


def build_graph(source: ModelSource, *, n_ctx: int | None = None) -> Graph:
    """The op list of a checkpoint, for a context of n_ctx tokens (None: what it was trained for;
    see `Graph.n_ctx_switch`).

    Raises UnsupportedError(backend="native") for an architecture or a variant that the native
    engine does not know, FormatError for metadata or tensors that are missing or contradict
    each other.
    """
    ckpt = Checkpoint(source.metadata, source.tensors, source.dequantize, n_ctx=n_ctx)
    row = ARCHITECTURES.get(ckpt.arch)
    if row is None:
        raise UnsupportedError(
            f"the native engine does not know the architecture {ckpt.arch!r}, only "
            f"{', '.join(sorted(ARCHITECTURES))}; {OTHER_BACKEND}",
            backend="native",
        )
    return row.graph(ckpt)
