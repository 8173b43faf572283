"""The language in which an architecture is written: a short list of ops.

An architecture file maps a checkpoint's metadata and tensor names to a `Graph`. Two executors
run it: `ops.reference` (NumPy, float32, the truth) and the native one, in one call per step.
They know these ops and nothing about models.

Buffers are named float32 activations of a fixed width, one row per token (x_TD: tokens x dim).
Weights are GGUF tensor names; a `Linear` weight is [out, in] and computes dst = src @ weight.T.
`name[a:b]` names the rows a to b - 1 of a tensor, for files that store several weights as one.
Ops act on each row alone, except `Attention`, which also reads the state slot of its sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

#: silu is x * sigmoid(x); gelu is x * Phi(x), by its tanh approximation or exactly.
Activation = Literal["silu", "gelu_tanh", "gelu", "relu"]


def rows_of(weight: str, start: int, stop: int) -> str:
    """The name of some of a tensor's rows."""
    return f"{weight}[{start}:{stop}]"


@dataclass(frozen=True, kw_only=True)
class Embed:
    """dst = weight[token] * scale."""

    dst: str
    weight: str
    scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Positions:
    """dst += weight[position]: learned positions, as many as the weight has rows."""

    dst: str
    weight: str


@dataclass(frozen=True, kw_only=True)
class TokenTypes:
    """dst += weight[type of the token]: which of its texts a token belongs to (BERT's segments)."""

    dst: str
    weight: str


@dataclass(frozen=True, kw_only=True)
class Norm:
    """RMS norm, or layer norm, over each of `heads` equal parts of a row.

    rms:   y = x / sqrt(mean(x^2) + eps) * weight        (arXiv:1910.07467)
    layer: y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias
    weight has width/heads entries, or width: each part its own; bias width/heads. dst may equal
    src.
    """

    dst: str
    src: str
    weight: str
    eps: float
    kind: Literal["rms", "layer"] = "rms"
    bias: str | None = None
    heads: int = 1


@dataclass(frozen=True, kw_only=True)
class Linear:
    """dst = src @ weight.T (+ bias)."""

    dst: str
    src: str
    weight: str
    bias: str | None = None


@dataclass(frozen=True, kw_only=True)
class Lora:
    """dst += up (down src) by the factors of the row's adapter; a row without one stays.

    Low-rank changes of the `Linear` by `weight` (arXiv:2106.09685). The factors are not in the
    model's file: whoever runs the graph has them, [r, in] and [out, r], by adapter and weight.
    """

    dst: str
    src: str
    weight: str


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary position embedding in place on each head (arXiv:2104.09864).

    freqs_P: radians per position for each rotated pair, float64, with every scaling applied.
    style "norm" rotates (2i, 2i+1); "neox" rotates (i, i + P). Dimensions from 2P on stay.
    mscale multiplies cos and sin (YaRN's attention factor).
    """

    buf: str
    heads: int
    head_dim: int
    freqs: NDArray[np.float64]
    style: Literal["norm", "neox"]
    mscale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Attention over the sequence's KV slot; k and v of the row are stored first.

    softmax(scale * q k^T) v with grouped query heads: query head h reads kv head
    h // (heads // kv_heads). window W: a row at position p sees positions p-W+1 .. p.
    softcap c: scores become c * tanh(score / c). Not causal: a row sees all of its sequence
    that the step holds, which must be the whole sequence. sinks: a score per head that takes
    its part of the softmax and gives no value (as gpt-oss has them; cf. arXiv:2309.17453).
    """

    dst: str
    q: str
    k: str
    v: str
    slot: int
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int | None = None
    softcap: float | None = None
    causal: bool = True
    sinks: str | None = None


@dataclass(frozen=True, kw_only=True)
class Act:
    """dst = act(src)."""

    dst: str
    src: str
    act: Activation


@dataclass(frozen=True, kw_only=True)
class Glu:
    """dst = act(gate) * up."""

    dst: str
    gate: str
    up: str
    act: Activation


@dataclass(frozen=True, kw_only=True)
class Experts:
    """dst = sum over the chosen experts e of w_e * (down_e @ glu(gate_e @ src, up_e @ src)).

    The `used` experts with the largest scores are chosen, the lower one first among equals. Their
    weights are the softmax over the chosen scores, or (not among_used) over all of them, times
    scale. Weights are [experts, out, in], biases [experts, out] (arXiv:2401.04088).
    glu is `Glu`'s act(gate) * up, or "clamped_swiglu" of gpt-oss: with gate at most 7 and up
    within 7 of 0, gate * sigmoid(1.702 gate) * (up + 1).
    """

    dst: str
    src: str
    scores: str
    gate: str
    up: str
    down: str
    gate_bias: str | None = None
    up_bias: str | None = None
    down_bias: str | None = None
    experts: int
    used: int
    width: int
    act: Activation | Literal["clamped_swiglu"] = "silu"
    among_used: bool = True
    scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Add:
    """dst += src."""

    dst: str
    src: str


@dataclass(frozen=True, kw_only=True)
class Scale:
    """buf *= factor."""

    buf: str
    factor: float


@dataclass(frozen=True, kw_only=True)
class Logits:
    """The last op: logits = src @ weight.T * scale, then c * tanh(x / c) if softcap c."""

    src: str
    weight: str
    scale: float = 1.0
    softcap: float | None = None


@dataclass(frozen=True, kw_only=True)
class Output:
    """The last op of a model that gives hidden states and no logits: src as it is."""

    src: str


Op = (
    Embed
    | Positions
    | TokenTypes
    | Norm
    | Linear
    | Lora
    | Rope
    | Attention
    | Act
    | Glu
    | Experts
    | Add
    | Scale
    | Logits
    | Output
)


@dataclass(frozen=True, kw_only=True)
class KVSlot:
    """One layer's attention state: keys and values of kv_heads x head_dim per position."""

    kv_heads: int
    head_dim: int
    window: int | None = None


#: mean: of all rows. cls: the first row. last: the last one. rank: the first row through `Head`.
PoolingKind = Literal["mean", "cls", "last", "rank"]
HeadActivation = Literal["tanh", "relu"]


@dataclass(frozen=True, kw_only=True)
class Head:
    """scores = out(act(dense(row))); without dense: out(row). Tensor names; labels: of scores."""

    out: str
    out_bias: str | None = None
    dense: str | None = None
    dense_bias: str | None = None
    act: HeadActivation = "tanh"
    labels: tuple[str, ...] = ()

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of those that there are."""
        names = (self.out, self.out_bias, self.dense, self.dense_bias)
        return tuple(name for name in names if name is not None)


@dataclass(frozen=True, kw_only=True)
class Pooling:
    """What a sequence's hidden states become: one vector, or a head's scores.

    normalize: divided by its Euclidean length. max_tokens: the longest text that the model was
    made for, None: its context.
    """

    kind: PoolingKind
    normalize: bool = True
    head: Head | None = None
    max_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A whole model. Buffer widths are in float32 elements per token.

    n_ctx_switch: some models turn by other frequencies where the context is longer than this;
    the graph is for contexts on one side of it.
    The last op, `Logits` or `Output`, says what a step gives for a row; pooling, what becomes of
    the rows of an `Output`, where the file says.
    """

    arch: str
    n_vocab: int
    n_ctx_train: int
    n_layers: int
    n_embd: int
    buffers: dict[str, int]
    slots: tuple[KVSlot, ...]
    ops: tuple[Op, ...]
    n_ctx_switch: int | None = None
    notes: tuple[str, ...] = field(default=())
    pooling: Pooling | None = None

    @property
    def n_out(self) -> int:
        """How wide a row is that a step gives: logits, or hidden states."""
        last = self.ops[-1]
        return self.buffers[last.src] if isinstance(last, Output) else self.n_vocab
