"""The truth: a `Graph` executed in NumPy, float32 throughout, one op at a time.

Owns the definition of every op that the native executor must match. Weights are dequantized,
activations are never quantized, matrix products are BLAS. It refuses what the graph language
does not say; it is slow on purpose and has no options that change a result.

Two ways in: `forward` runs one whole sequence and needs no state (weights are dequantized as
they are met and dropped again, so that memory stays at one tensor above the activations), and
`ReferenceRunner` has the face of every runner: pages, page tables, batches of sequences.

Shapes: T tokens (rows), S positions seen, R rows with logits, V vocabulary, D buffer width,
H heads, G kv heads, E head width, P rotated pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from insula.errors import EngineError
from insula.ops.graph import (
    Act,
    Activation,
    Add,
    Attention,
    Embed,
    Experts,
    Glu,
    Graph,
    Linear,
    Logits,
    Lora,
    Norm,
    Positions,
    Rope,
    Scale,
)

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]


class TensorSource(Protocol):
    """Where weights come from; `formats.gguf.GGUFFile` is one."""

    def dequantize(self, name: str) -> F32:
        """The whole tensor as float32 in NumPy order: a linear weight is [out, in]."""
        ...


#: attend(op, q_THE, k_TGE, v_TGE, sinks_H) -> a_THE: stores keys and values, then attends.
Attend = Callable[[Attention, F32, F32, F32, F32 | None], F32]


def forward(graph: Graph, source: TensorSource, ids: ArrayLike) -> F32:
    """Logits [T, V] of one sequence from position 0. Raises EngineError for an unknown id."""
    tokens = np.asarray(ids, dtype=np.int32)
    positions = np.arange(len(tokens), dtype=np.int32)

    def attend(op: Attention, q: F32, k: F32, v: F32, sinks: F32 | None) -> F32:
        return attention(op, q, k, v, positions, sinks)

    return _run(graph, source.dequantize, tokens, positions, np.arange(len(tokens)), attend)


class ReferenceRunner:
    """The runner face over NumPy: paged KV, any mix of sequences in one step.

    Weights are dequantized once, at first use, and kept: four bytes per parameter.
    """

    engine = "reference"
    isa = "numpy"
    threads = 1

    def __init__(
        self, graph: Graph, source: TensorSource, *, n_pages: int, page_size: int = 64
    ) -> None:
        self.graph = graph
        self.n_pages = n_pages
        self.page_size = page_size
        self.n_vocab = graph.n_vocab
        self._source = source
        self._weights: dict[str, F32] = {}
        self._keys = [self._pages(slot.kv_heads, slot.head_dim) for slot in graph.slots]
        self._values = [self._pages(slot.kv_heads, slot.head_dim) for slot in graph.slots]

    def step(
        self,
        tokens: ArrayLike,
        positions: ArrayLike,
        rows: ArrayLike,
        tables: Sequence[I32],
        logit_rows: ArrayLike,
        adapters: ArrayLike | None = None,
    ) -> F32:
        """Run T tokens and return logits [R, V] for `logit_rows` (indices into the T rows).

        rows[t] is the table (sequence) of token t; a sequence's tokens are consecutive and
        ascending in position. tables[s][p // page_size] is the page that holds position p.
        adapters: there are none here.
        """
        tokens_T = np.asarray(tokens, dtype=np.int32)
        positions_T = np.asarray(positions, dtype=np.int32)
        rows_T = np.asarray(rows, dtype=np.int32)
        logit_rows_R = np.asarray(logit_rows, dtype=np.int64)
        spans = self._spans(tokens_T, positions_T, rows_T, tables)

        def attend(op: Attention, q: F32, k: F32, v: F32, sinks: F32 | None) -> F32:
            a = np.empty_like(q)
            keys, values = self._keys[op.slot], self._values[op.slot]
            for start, stop, pages in spans:
                p = positions_T[start:stop]
                keys[pages[p // self.page_size], p % self.page_size] = k[start:stop]
                values[pages[p // self.page_size], p % self.page_size] = v[start:stop]
                seen = np.arange(p[-1] + 1)
                at = pages[seen // self.page_size], seen % self.page_size
                a[start:stop] = attention(op, q[start:stop], keys[at], values[at], p, sinks)
            return a

        return _run(self.graph, self._weight, tokens_T, positions_T, logit_rows_R, attend)

    def copy_page(self, src: int, dst: int) -> None:
        """Copy one page's keys and values in every slot."""
        for pages in (*self._keys, *self._values):
            pages[dst] = pages[src]

    def close(self) -> None:
        """Let go of weights and pages."""
        self._weights.clear()
        self._keys.clear()
        self._values.clear()

    def _pages(self, kv_heads: int, head_dim: int) -> F32:
        return np.zeros((self.n_pages, self.page_size, kv_heads, head_dim), np.float32)

    def _weight(self, name: str) -> F32:
        if name not in self._weights:
            self._weights[name] = self._source.dequantize(name)
        return self._weights[name]

    def _spans(
        self, tokens: I32, positions: I32, rows: I32, tables: Sequence[I32]
    ) -> list[tuple[int, int, I32]]:
        """(start, stop, page table) of each sequence in the step, checked."""
        if not len(tokens) == len(positions) == len(rows) or not len(tokens):
            raise EngineError(
                f"a step needs as many positions and rows as tokens, and one at least: "
                f"found {len(tokens)} tokens, {len(positions)} positions, {len(rows)} rows"
            )
        cuts = [0, *(np.flatnonzero(np.diff(rows)) + 1).tolist(), len(rows)]
        spans = []
        for start, stop in pairwise(cuts):
            p = positions[start:stop]
            pages = np.asarray(tables[rows[start]], dtype=np.int32)
            if p[0] < 0 or np.any(np.diff(p) <= 0) or p[-1] // self.page_size >= len(pages):
                raise EngineError(
                    f"positions {p[0]}..{p[-1]} of sequence {rows[start]} must ascend and fit "
                    f"its {len(pages)} pages of {self.page_size}"
                )
            if pages.min() < 0 or pages.max() >= self.n_pages:
                raise EngineError(f"a page id lies outside 0..{self.n_pages - 1}")
            spans.append((start, stop, pages))
        return spans


def _run(
    graph: Graph,
    weight: Callable[[str], F32],
    tokens: I32,
    positions: I32,
    logit_rows: NDArray[np.int64],
    attend: Attend,
) -> F32:
    """Every op of the graph in order, over all rows."""
    if len(tokens) and (tokens.min() < 0 or tokens.max() >= graph.n_vocab):
        raise EngineError(
            f"token ids lie in 0..{graph.n_vocab - 1}, found {tokens.min()}..{tokens.max()}"
        )
    n = len(tokens)
    bufs: dict[str, F32] = {}
    for op in graph.ops:
        match op:
            case Embed():
                bufs[op.dst] = weight(op.weight)[tokens] * np.float32(op.scale)
            case Positions():
                bufs[op.dst] = bufs[op.dst] + weight(op.weight)[positions]
            case Norm():
                bufs[op.dst] = norm(
                    bufs[op.src],
                    weight(op.weight),
                    None if op.bias is None else weight(op.bias),
                    eps=op.eps,
                    kind=op.kind,
                    heads=op.heads,
                )
            case Linear():
                y = bufs[op.src] @ weight(op.weight).T
                bufs[op.dst] = y if op.bias is None else y + weight(op.bias)
            case Lora():
                raise EngineError("the reference has no adapters; merge the adapter's weights")
            case Rope():
                x_THE = bufs[op.buf].reshape(n, op.heads, op.head_dim)
                bufs[op.buf] = rope(
                    x_THE, positions, op.freqs, style=op.style, mscale=op.mscale
                ).reshape(n, -1)
            case Attention():
                q_THE = bufs[op.q].reshape(n, op.heads, op.head_dim)
                k_TGE = bufs[op.k].reshape(n, op.kv_heads, op.head_dim)
                v_TGE = bufs[op.v].reshape(n, op.kv_heads, op.head_dim)
                sinks = None if op.sinks is None else weight(op.sinks)
                bufs[op.dst] = attend(op, q_THE, k_TGE, v_TGE, sinks).reshape(n, -1)
            case Act():
                bufs[op.dst] = ACTIVATIONS[op.act](bufs[op.src])
            case Glu():
                bufs[op.dst] = ACTIVATIONS[op.act](bufs[op.gate]) * bufs[op.up]
            case Experts():
                bufs[op.dst] = experts(op, bufs[op.src], bufs[op.scores], weight)
            case Add():
                bufs[op.dst] = bufs[op.dst] + bufs[op.src]
            case Scale():
                bufs[op.buf] = bufs[op.buf] * np.float32(op.factor)
            case Logits():
                logits = bufs[op.src][logit_rows] @ weight(op.weight).T
                logits *= np.float32(op.scale)
                return softcapped(logits, op.softcap)
    raise EngineError(f"the graph of {graph.arch} has no Logits op")


def norm(x_TD: F32, weight: F32, bias: F32 | None, *, eps: float, kind: str, heads: int = 1) -> F32:
    """RMS or layer norm over each of `heads` equal parts of a row (arXiv:1910.07467)."""
    x = x_TD.reshape(len(x_TD), heads, -1)
    if kind == "layer":
        x = x - x.mean(axis=-1, keepdims=True)
    mean_square = np.mean(x * x, axis=-1, keepdims=True)
    y: F32 = x / np.sqrt(mean_square + np.float32(eps)) * weight
    if bias is not None:
        y = y + bias
    return y.reshape(x_TD.shape)


def rope(
    x_THE: F32, positions: I32, freqs_P: NDArray[np.float64], *, style: str, mscale: float
) -> F32:
    """Rotate pairs (2i, 2i+1) ("norm") or (i, i+P) ("neox") by position * freq radians.

    Angles are formed in float64: a float32 angle at position 100,000 is off by 0.004.
    """
    pairs = len(freqs_P)
    angle = positions[:, None].astype(np.float64) * freqs_P
    cos = (np.cos(angle) * mscale).astype(np.float32)[:, None, :]
    sin = (np.sin(angle) * mscale).astype(np.float32)[:, None, :]
    if style == "norm":
        first, second = slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)
    else:
        first, second = slice(0, pairs), slice(pairs, 2 * pairs)
    a, b = x_THE[..., first], x_THE[..., second]
    y = x_THE.copy()
    y[..., first] = a * cos - b * sin
    y[..., second] = a * sin + b * cos
    return y


def attention(
    op: Attention,
    q_THE: F32,
    k_SGE: F32,
    v_SGE: F32,
    positions_T: I32,
    sinks_H: F32 | None = None,
) -> F32:
    """softmax(scale * q k^T) v; k and v are positions 0..S-1 of the one sequence."""
    group = op.heads // op.kv_heads
    seen_S = np.arange(len(k_SGE))
    hidden_TS = (seen_S > positions_T[:, None]) & op.causal
    if op.window is not None:
        hidden_TS |= seen_S <= positions_T[:, None] - op.window
    out_THE = np.empty_like(q_THE)
    for h in range(op.heads):  # one head at a time: the scores of all would be T*S*H
        scores_TS = q_THE[:, h] @ k_SGE[:, h // group].T
        scores_TS *= np.float32(op.scale)
        scores_TS = softcapped(scores_TS, op.softcap)
        scores_TS[hidden_TS] = -np.inf
        if sinks_H is not None:
            sink_T1 = np.full((len(scores_TS), 1), sinks_H[h])
            scores_TS = np.concatenate([scores_TS, sink_T1], axis=1)
        out_THE[:, h] = softmax(scores_TS)[:, : len(seen_S)] @ v_SGE[:, h // group]
    return out_THE


def experts(op: Experts, x_TD: F32, scores_TX: F32, weight: Callable[[str], F32]) -> F32:
    """Each chosen expert's output, weighted and added (X experts)."""
    chosen_TU = np.argsort(-scores_TX, axis=-1, kind="stable")[:, : op.used]
    weights_TU = np.take_along_axis(scores_TX, chosen_TU, axis=-1)
    if op.among_used:
        weights_TU = softmax(weights_TU)
    else:
        weights_TU = np.take_along_axis(softmax(scores_TX), chosen_TU, axis=-1)
    gate, up, down = weight(op.gate), weight(op.up), weight(op.down)

    def product(x: F32, w_XOI: F32, bias: str | None, e: int) -> F32:
        y: F32 = x @ w_XOI[e].T
        return y if bias is None else y + weight(bias)[e]

    out_TD = np.zeros((len(x_TD), down.shape[1]), np.float32)
    for e in range(op.experts):
        t, u = np.nonzero(chosen_TU == e)
        if not len(t):
            continue
        g_TF = product(x_TD[t], gate, op.gate_bias, e)
        u_TF = product(x_TD[t], up, op.up_bias, e)
        if op.act == "clamped_swiglu":
            y_TF = clamped_swiglu(g_TF, u_TF)
        else:
            y_TF = ACTIVATIONS[op.act](g_TF) * u_TF
        y = product(y_TF, down, op.down_bias, e)
        np.add.at(out_TD, t, y * (weights_TU[t, u] * np.float32(op.scale))[:, None])
    return out_TD


def clamped_swiglu(gate: F32, up: F32) -> F32:
    """gpt-oss's gate: g sigmoid(1.702 g) (u + 1) of clamped g and u (its reference code)."""
    g, u = np.minimum(gate, np.float32(7)), np.clip(up, np.float32(-7), np.float32(7))
    y: F32 = g / (1 + np.exp(np.float32(-1.702) * g)) * (u + 1)
    return y


def softmax(x: F32) -> F32:
    """exp(x) / sum(exp(x)) along the last axis; -inf entries become 0."""
    e: F32 = np.exp(x - x.max(axis=-1, keepdims=True))
    e /= e.sum(axis=-1, keepdims=True)
    return e


def softcapped(x: F32, cap: float | None) -> F32:
    """cap * tanh(x / cap), or x itself."""
    if cap is None:
        return x
    y: F32 = np.float32(cap) * np.tanh(x / np.float32(cap))
    return y


def silu(x: F32) -> F32:
    """x * sigmoid(x) (arXiv:1702.03118), written so that exp never overflows."""
    e = np.exp(-np.abs(x))
    y: F32 = x * np.where(x >= 0, np.float32(1), e) / (1 + e)
    return y


def gelu_tanh(x: F32) -> F32:
    """The tanh approximation of GELU (arXiv:1606.08415)."""
    inner = np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x * x * x)
    y: F32 = np.float32(0.5) * x * (1 + np.tanh(inner))
    return y


def gelu(x: F32) -> F32:
    """x * Phi(x) (arXiv:1606.08415), Phi by math.erf in float64."""
    phi = 0.5 * (1 + _erf(x.astype(np.float64) / math.sqrt(2)))
    y: F32 = (x * phi).astype(np.float32)
    return y


def relu(x: F32) -> F32:
    """max(x, 0)."""
    return np.maximum(x, np.float32(0))


_erf = np.vectorize(math.erf, otypes=[np.float64])

ACTIVATIONS: Mapping[Activation, Callable[[F32], F32]] = MappingProxyType(
    {"silu": silu, "gelu_tanh": gelu_tanh, "gelu": gelu, "relu": relu}
)
