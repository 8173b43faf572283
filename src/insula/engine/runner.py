"""The native runner: a Graph and its tensors, packed once, run one step at a time.

Owns the way from named buffers and tensors to the native program, and nothing of scheduling.
Refuses, with a typed error, a graph or tensors that the native side cannot take.
Invariant: after construction the source file is not read again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from insula import _native
from insula.config import KV_TYPES, settings
from insula.engine.packed_weights import PackedWeights, open_packed
from insula.engine.whole_numbers import WHOLE_NUMBERS, kept_as, matrix_bytes
from insula.errors import ConfigError, EngineError, FormatError, ResourceError
from insula.formats.gguf import GGUFFile
from insula.models.adapters import Adapter, adapted, factors
from insula.ops.graph import (
    Act,
    Attention,
    Embed,
    Experts,
    Glu,
    Graph,
    Linear,
    Logits,
    Lora,
    Norm,
    Op,
    Positions,
    Rope,
    Scale,
    TokenTypes,
)

PAGE_TOKENS = 64

#: Rows that one step takes; the scheduler's largest prefill slice.
MAX_ROWS = 512

_ACTS = {"silu": 0, "gelu_tanh": 1, "gelu": 2, "relu": 3, "clamped_swiglu": 4}


class NativeRunner:
    """Runs a graph with the compiled kernels. Not thread-safe beyond one step at a time."""

    engine = "native"
    page_size = PAGE_TOKENS

    def __init__(
        self,
        graph: Graph,
        gguf: GGUFFile,
        *,
        n_pages: int,
        threads: int | None = None,
        kv_type: str = "f16",
        isa: str | None = None,
        max_rows: int = MAX_ROWS,
        packed: tuple[Path | None, bytes] | None = None,
        adapters: Sequence[Adapter] = (),
        whole_numbers: bool = False,
    ) -> None:
        """Packs every tensor that the graph names.

        n_pages: pages of 64 positions, shared by all sequences; memory is used when a page is
        first written. threads: None for one per physical core that this process may use.
        kv_type: how keys and values are kept; int8 takes about half of f16. isa: an
        instruction-set level, None for INSULA_ISA or the best one. packed: matrices are mapped
        from a file below this folder (packed_weights), made under this key if it is not there.
        adapters: of which a sequence may go through one, by its place among them.
        whole_numbers: float matrices are multiplied as such (engine/whole_numbers.py).
        Raises ConfigError, FormatError or ResourceError.
        """
        if kv_type not in KV_TYPES:
            raise ConfigError(f"kv_type: found {kv_type!r}; allowed: {', '.join(KV_TYPES)}")
        if threads is not None and not 1 <= threads <= 1024:
            raise ConfigError(f"threads: found {threads}; allowed: 1 to 1024")
        level = isa if isa is not None else settings().isa or ""
        try:
            self._model = _native.Model(level, threads or 0)
        except ValueError as error:
            raise ConfigError(f"INSULA_ISA: {error}") from None
        self.graph = graph = adapted(graph, adapters) if adapters else graph
        self._adapters = adapters
        self._weights: dict[str, int] = {}
        self._types = kept_as(graph, gguf, matrices(graph), whole=whole_numbers)
        self._packed: PackedWeights | None = None
        if packed is not None:
            self._packed = open_packed(
                packed[0] or settings().home, self._model, gguf, self._types, key=packed[1]
            )
        try:
            self._build(gguf)
            self._model.allocate(n_pages, kv_type, max_rows)
        except MemoryError:
            raise ResourceError(
                f"there is not enough memory for {n_pages} pages beside the weights; "
                "ask for a smaller context (n_ctx) or a smaller model"
            ) from None
        except FormatError:  # names the file
            raise
        except ValueError as error:
            raise FormatError(f"{gguf.path.name}: {error}") from None
        self.n_pages = n_pages
        self.n_vocab = graph.n_vocab
        self.max_rows = max_rows
        self.isa = self._model.isa
        self.threads = self._model.threads

    @property
    def weight_bytes(self) -> int:
        """Bytes of packed weights."""
        return self._model.weight_bytes

    @property
    def page_bytes(self) -> int:
        """Bytes that one page takes over all layers."""
        return self._model.page_bytes

    def step(
        self,
        tokens: ArrayLike,
        positions: ArrayLike,
        rows: ArrayLike,
        tables: Sequence[NDArray[np.int32]],
        logit_rows: ArrayLike,
        adapters: ArrayLike | None = None,
        types: ArrayLike | None = None,
    ) -> NDArray[np.float32]:
        """Run T tokens and return logits [R, n_vocab] for `logit_rows` (indices into T), or hidden
        states [R, n_out] where the graph ends with them. types: of each token, 0 if None.

        rows[t] is the table (sequence) of token t; a sequence's tokens stand together and ascend
        in position. tables[s][p // 64] is the page of position p. adapters[s]: which adapter
        its tokens go through, -1 for none.
        """
        try:
            out = self._model.step(
                _ints(tokens),
                _ints(positions),
                _ints(rows),
                [_ints(t) for t in tables],
                _ints(logit_rows),
                None if adapters is None else _ints(adapters),
                None if types is None else _ints(types),
            )
        except (ValueError, MemoryError) as error:
            raise EngineError(f"the native engine refused a step: {error}") from None
        if self._packed is not None:
            self._packed.check()
        return out

    def copy_page(self, src: int, dst: int) -> None:
        """Copy one page of every layer."""
        self._model.copy_page(src, dst)

    def record(self, *, on: bool) -> None:
        """From now on, from nothing, sum the squares of what products read; or no more."""
        self._model.record(on)

    def recorded(self, name: str) -> tuple[NDArray[np.float64], int]:
        """Sums of squares by column, float64 [in], of the rows that tensor `name` (as the graph
        names it) was multiplied with since `record`, and how many rows these were."""
        sums, rows = self._model.recorded(self._weights[name])
        return sums, rows

    def populate(self, pages: int) -> None:
        """Take the memory of the first pages now, and not when they are first written."""
        self._model.populate(min(pages, self.n_pages))

    def save_page(self, page: int, tokens: int, out: NDArray[np.uint8]) -> int:
        """Copy a page of every layer to out, uint8 [page_bytes], zeros behind its tokens, where
        another request's may lie; the bytes' checksum."""
        return self._model.save_page(page, tokens, out)

    def load_pages(
        self, pages: Sequence[int], files: Sequence[int], offset: int
    ) -> list[int | None]:
        """Fill pages from open files, on all threads; see `request.PageRunner`."""
        return self._model.load_pages(pages, files, offset)

    def close(self) -> None:
        """Free weights and pages."""
        del self._model
        if self._packed is not None:
            self._packed.close()

    def _build(self, gguf: GGUFFile) -> None:
        names = list(self.graph.buffers)
        buffers = {name: i for i, name in enumerate(names)}
        weights = self._weights
        vectors: dict[str, int] = {}
        freqs: dict[bytes, int] = {}

        def weight(name: str) -> int:
            if name not in weights:
                kind = self._types[name]
                rows, cols = gguf.info(name).matrix
                if self._packed is not None:
                    at = self._model.add_packed(kind, rows, cols, self._packed.data(name))
                else:
                    data = matrix_bytes(gguf, name, kind)
                    at = self._model.add_weight(kind, rows, cols, data, kind != WHOLE_NUMBERS)
                weights[name] = at
            return weights[name]

        def vector(name: str | None) -> int:
            if name is None:
                return -1
            if name not in vectors:
                vectors[name] = self._model.add_vector(gguf.dequantize(name).ravel())
            return vectors[name]

        def table(array: NDArray[np.float64]) -> int:
            values = np.ascontiguousarray(array, dtype=np.float64)
            key = values.tobytes()
            if key not in freqs:
                freqs[key] = self._model.add_freqs(values)
            return freqs[key]

        def lora(op: Lora) -> int:
            out, width = gguf.info(op.weight).matrix
            pairs = []
            for adapter in self._adapters:
                found = factors(adapter, op.weight, out=out, width=width)
                pair = (-1, -1) if found is None else (floats(found[0]), floats(found[1]))
                pairs.append(pair)
            at: int = self._model.add_lora(pairs)
            return at

        def floats(matrix: NDArray[np.float32]) -> int:
            data = np.ascontiguousarray(matrix, np.float32)
            rows, cols = data.shape
            return self._model.add_weight(0, rows, cols, data.reshape(-1).view(np.uint8), False)

        ops = []
        for op in self.graph.ops:
            ops.append(_lower(op, buffers, weight, vector, table))
            if isinstance(op, Lora):
                ops[-1]["lora"] = lora(op)
        gguf.check()
        self._model.set_program(
            ops,
            [self.graph.buffers[name] for name in names],
            [[slot.kv_heads, slot.head_dim] for slot in self.graph.slots],
        )


def matrices(graph: Graph) -> list[str]:
    """The tensors that the kernels read packed, each once, in order of first use."""
    names: dict[str, None] = {}
    for op in graph.ops:
        match op:
            case Embed() | Positions() | TokenTypes() | Linear() | Logits():
                names[op.weight] = None
            case Experts():
                names |= dict.fromkeys((op.gate, op.up, op.down))
            case _:
                pass
    return list(names)


def _lower(op: Op, buffers: dict[str, int], weight: Any, vector: Any, table: Any) -> dict[str, Any]:
    """One op as the native side takes it: names become indices."""
    out: dict[str, Any] = {"kind": type(op).__name__}
    for f in fields(op):
        value = getattr(op, f.name)
        if f.name in ("dst", "src", "buf", "q", "k", "v") or (
            isinstance(op, Glu) and f.name in ("gate", "up")
        ):
            key = {"buf": "dst", "q": "src", "gate": "src", "up": "k"}.get(f.name, f.name)
            out[key] = buffers[value]
    match op:
        case Embed():
            out |= {"weight": weight(op.weight), "scale": op.scale}
        case Positions() | TokenTypes():
            out["weight"] = weight(op.weight)
        case Norm():
            out |= {
                "weight": vector(op.weight),
                "bias": vector(op.bias),
                "eps": op.eps,
                "heads": op.heads,
                "layer_norm": op.kind == "layer",
            }
        case Linear():
            out |= {"weight": weight(op.weight), "bias": vector(op.bias)}
        case Rope():
            out |= {
                "heads": op.heads,
                "head_dim": op.head_dim,
                "freqs": table(op.freqs),
                "neox": op.style == "neox",
                "mscale": op.mscale,
            }
        case Attention():
            out |= {
                "slot": op.slot,
                "heads": op.heads,
                "kv_heads": op.kv_heads,
                "head_dim": op.head_dim,
                "scale": op.scale,
                "window": op.window or 0,
                "softcap": op.softcap or 0.0,
                "causal": op.causal,
                "bias": vector(op.sinks),
            }
        case Act() | Glu():
            out["act"] = _ACTS[op.act]
        case Experts():
            out |= {
                "k": buffers[op.scores],
                "weight": weight(op.gate),
                "up": weight(op.up),
                "down": weight(op.down),
                "bias": vector(op.gate_bias),
                "up_bias": vector(op.up_bias),
                "down_bias": vector(op.down_bias),
                "experts": op.experts,
                "used": op.used,
                "act": _ACTS[op.act],
                "among_used": op.among_used,
                "scale": op.scale,
            }
        case Logits():
            out |= {
                "weight": weight(op.weight),
                "scale": op.scale,
                "softcap": op.softcap or 0.0,
            }
        case Scale():
            out["scale"] = op.factor
    return out


def _ints(values: ArrayLike) -> NDArray[np.int32]:
    return np.ascontiguousarray(values, dtype=np.int32)
