"""From a path to a model that can run: file, op list and tokenizer, checked against each other.

Owns the agreement between the parts: the vocabulary has as many tokens as the embedding has
rows, and every tensor the graph uses is in a format that the native kernels read. Nothing is
packed or computed here; opening takes milliseconds whatever the size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

from insula.errors import FormatError, UnsupportedError
from insula.formats.ggml_types import GGMLType
from insula.formats.gguf import GGUFFile
from insula.models.checkpoint import OTHER_BACKEND
from insula.models.registry import build_graph
from insula.ops.graph import Experts, Graph
from insula.tokenizer import Tokenizer

#: What the native kernels read.
NATIVE_FORMATS = frozenset(
    {
        GGMLType.F32,
        GGMLType.F16,
        GGMLType.BF16,
        GGMLType.Q4_0,
        GGMLType.Q4_1,
        GGMLType.Q5_0,
        GGMLType.Q5_1,
        GGMLType.Q8_0,
        GGMLType.Q2_K,
        GGMLType.Q3_K,
        GGMLType.Q4_K,
        GGMLType.Q5_K,
        GGMLType.Q6_K,
        GGMLType.IQ4_NL,
        GGMLType.IQ4_XS,
        GGMLType.MXFP4,
    }
)

#: general.file_type, as llama.cpp's enum llama_ftype numbers them (include/llama.h).
FILE_TYPES = MappingProxyType(
    {
        0: "F32",
        1: "F16",
        2: "Q4_0",
        3: "Q4_1",
        7: "Q8_0",
        8: "Q5_0",
        9: "Q5_1",
        10: "Q2_K",
        11: "Q3_K_S",
        12: "Q3_K_M",
        13: "Q3_K_L",
        14: "Q4_K_S",
        15: "Q4_K_M",
        16: "Q5_K_S",
        17: "Q5_K_M",
        18: "Q6_K",
        19: "IQ2_XXS",
        20: "IQ2_XS",
        21: "Q2_K_S",
        22: "IQ3_XS",
        23: "IQ3_XXS",
        24: "IQ1_S",
        25: "IQ4_NL",
        26: "IQ3_S",
        27: "IQ3_M",
        28: "IQ2_S",
        29: "IQ2_M",
        30: "IQ4_XS",
        31: "IQ1_M",
        32: "BF16",
        36: "TQ1_0",
        37: "TQ2_0",
        38: "MXFP4",
    }
)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a file says about its model, for people and for `--json`.

    quantization: the name the file gives itself, else the format that most bytes are in.
    formats: bytes of tensor data by format name. license, name: None where the file is silent.
    """

    name: str | None
    arch: str
    parameters: int
    quantization: str
    formats: Mapping[str, int]
    weight_bytes: int
    context_length: int | None
    license: str | None


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """An opened model. It holds the file's mapping: close it, or use it as a context manager."""

    gguf: GGUFFile
    graph: Graph
    tokenizer: Tokenizer
    arch: str
    summary: Summary

    def close(self) -> None:
        """Let go of the file."""
        self.gguf.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_model(path: str | Path) -> ModelFile:
    """Open a GGUF model for the native engine.

    Raises NotFoundError or FormatError for the file, UnsupportedError(backend="native") for an
    architecture or tensor format that the native engine does not know, TokenizerError for the
    vocabulary.
    """
    gguf = GGUFFile.open(path)
    try:
        graph = build_graph(gguf)
        _check_formats(graph, gguf)
        tokenizer = Tokenizer.from_metadata(gguf.metadata)
        if tokenizer.vocab_size != graph.n_vocab:
            raise FormatError(
                f"the vocabulary has {tokenizer.vocab_size} tokens and token_embd.weight "
                f"{graph.n_vocab} rows; they must be equal"
            )
        return ModelFile(
            gguf=gguf, graph=graph, tokenizer=tokenizer, arch=graph.arch, summary=summarize(gguf)
        )
    except BaseException:
        gguf.close()
        raise


def summarize(gguf: GGUFFile) -> Summary:
    """What the file says of itself; works for every architecture and for a lone vocabulary."""
    meta = gguf.metadata
    arch = _string(meta, "general.architecture") or "unknown"
    size: Counter[str] = Counter()
    for info in gguf.tensors.values():
        size[info.type.name] += info.nbytes
    context = meta.get(f"{arch}.context_length")
    named = meta.get("general.file_type")
    return Summary(
        name=_string(meta, "general.name"),
        arch=arch,
        parameters=sum(prod(info.shape) for info in gguf.tensors.values()),
        quantization=(FILE_TYPES.get(named) if isinstance(named, int) else None)
        or (size.most_common(1)[0][0] if size else "none"),
        formats=dict(size.most_common()),
        weight_bytes=size.total(),
        context_length=context if isinstance(context, int) else None,
        license=_string(meta, "general.license"),
    )


def weight_names(graph: Graph) -> list[str]:
    """The tensors that a graph's ops read, each once, in order of first use."""
    names: dict[str, None] = {}
    for op in graph.ops:
        tensors = ["weight", "bias", "sinks"]
        if isinstance(op, Experts):
            tensors = ["gate", "up", "down", "gate_bias", "up_bias", "down_bias"]
        for name in tensors:
            if (value := getattr(op, name, None)) is not None:
                names[value] = None
    return list(names)


def _check_formats(graph: Graph, gguf: GGUFFile) -> None:
    for name in weight_names(graph):
        found = gguf.info(name).type
        if found not in NATIVE_FORMATS:
            known = ", ".join(sorted(t.name for t in NATIVE_FORMATS))
            raise UnsupportedError(
                f"tensor {name} is {found.name}, the native engine reads {known}; "
                f"{OTHER_BACKEND}, or `insula quantize` may rewrite a less compressed original",
                backend="native",
            )


def _string(meta: Mapping[str, Any], key: str) -> str | None:
    value = meta.get(key)
    return value if isinstance(value, str) else None
