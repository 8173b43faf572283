"""What models share: the ops of a block's halves by GGUF's usual names, first and last ops.

An architecture file writes its block as a list of these; what differs between architectures
stays in their files. Every name is checked for presence and shape as the op is made.

The activations are one set, used again by every layer: x residual stream, h its norm, q k v a
attention, g u feed-forward, d what is added to x, n a second norm of x.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Literal

from insula.errors import UnsupportedError
from insula.models import rope
from insula.models.checkpoint import OTHER_BACKEND, Checkpoint, Dims
from insula.ops.graph import (
    Act,
    Activation,
    Add,
    Attention,
    Embed,
    Experts,
    Glu,
    Graph,
    KVSlot,
    Linear,
    Logits,
    Norm,
    Op,
    Output,
    Pooling,
    Rope,
    rows_of,
)

ADD = Add(dst="x", src="d")


class Block:
    """Makes the ops of layer `i` from tensor names below blk.<i>."""

    def __init__(self, ckpt: Checkpoint, i: int, d: Dims) -> None:
        self._ckpt = ckpt
        self._prefix = f"blk.{i}"
        self._i = i
        self._d = d

    def linear(self, dst: str, src: str, name: str, *, out: int, width: int) -> Linear:
        """dst = src @ <name>.weight.T, plus <name>.bias if the file has one."""
        return Linear(
            dst=dst,
            src=src,
            weight=self._ckpt.tensor(f"{self._prefix}.{name}.weight", out, width),
            bias=self._ckpt.optional(f"{self._prefix}.{name}.bias", out),
        )

    def part(
        self, dst: str, src: str, name: str, *, rows: tuple[int, int], of: int, width: int
    ) -> Linear:
        """`linear` by some rows of <name>.weight, which has `of` of them."""
        weight = self._ckpt.tensor(f"{self._prefix}.{name}.weight", of, width)
        bias = self._ckpt.optional(f"{self._prefix}.{name}.bias", of)
        return Linear(
            dst=dst,
            src=src,
            weight=rows_of(weight, *rows),
            bias=None if bias is None else rows_of(bias, *rows),
        )

    def norm(
        self, dst: str, src: str, name: str, *, width: int | None = None, heads: int = 1
    ) -> Norm:
        """The norm by <name>.weight, which has `width` entries, over each of `heads` parts.

        Without a width: over the residual stream's.
        """
        return norm(
            self._ckpt,
            self._d,
            dst,
            src,
            f"{self._prefix}.{name}",
            width=width or self._d.n_embd,
            heads=heads,
        )

    def qkv(self, src: str) -> list[Op]:
        """q, k, v = three products of src."""
        d = self._d
        return [
            self.linear("q", src, "attn_q", out=d.width_q, width=d.n_embd),
            self.linear("k", src, "attn_k", out=d.width_kv, width=d.n_embd),
            self.linear("v", src, "attn_v", out=d.width_kv, width=d.n_embd),
        ]

    def fused_qkv(self, src: str) -> list[Op]:
        """q, k, v = the products of src by attn_qkv's rows, in this order."""
        d = self._d
        first, second, end = d.width_q, d.width_q + d.width_kv, d.width_q + 2 * d.width_kv
        part = partial(self.part, src=src, name="attn_qkv", of=end, width=d.n_embd)
        return [
            part("q", rows=(0, first)),
            part("k", rows=(first, second)),
            part("v", rows=(second, end)),
        ]

    def head_norms(self, *, own: bool = False) -> list[Op]:
        """q and k normed, each head by itself, with the same weights or its own."""
        d = self._d
        if own:
            return [
                self._own_norm("q", "attn_q_norm", d.heads),
                self._own_norm("k", "attn_k_norm", d.kv_heads),
            ]
        return [
            self.norm("q", "q", "attn_q_norm", width=d.head_dim, heads=d.heads),
            self.norm("k", "k", "attn_k_norm", width=d.head_dim, heads=d.kv_heads),
        ]

    def _own_norm(self, buf: str, name: str, heads: int) -> Norm:
        """Each head of buf normed by its row of <name>.weight."""
        weight = self._ckpt.tensor(f"{self._prefix}.{name}.weight", heads, self._d.head_dim)
        return Norm(
            dst=buf, src=buf, weight=weight, eps=self._d.eps, kind=self._d.norm, heads=heads
        )

    def attention(
        self,
        *,
        scale: float | None = None,
        window: int | None = None,
        softcap: float | None = None,
        sinks: str | None = None,
        causal: bool = True,
    ) -> list[Op]:
        """d = the output product of attention over this layer's slot; scale: 1/sqrt(head_dim).

        sinks: a vector's name within the block.
        """
        d = self._d
        return [
            Attention(
                dst="a",
                q="q",
                k="k",
                v="v",
                slot=self._i,
                heads=d.heads,
                kv_heads=d.kv_heads,
                head_dim=d.head_dim,
                scale=d.head_dim**-0.5 if scale is None else scale,
                window=window,
                softcap=softcap,
                sinks=sinks and self._ckpt.tensor(f"{self._prefix}.{sinks}", d.heads),
                causal=causal,
            ),
            self.linear("d", "a", "attn_output", out=d.n_embd, width=d.width_q),
        ]

    def gated(self, src: str, *, act: Activation = "silu") -> list[Op]:
        """d = down(act(gate(src)) * up(src))."""
        d = self._d
        return [
            self.linear("g", src, "ffn_gate", out=d.n_ff, width=d.n_embd),
            self.linear("u", src, "ffn_up", out=d.n_ff, width=d.n_embd),
            Glu(dst="g", gate="g", up="u", act=act),
            self.linear("d", "g", "ffn_down", out=d.n_embd, width=d.n_ff),
        ]

    def plain(self, src: str, *, act: Activation) -> list[Op]:
        """d = down(act(up(src)))."""
        d = self._d
        return [
            self.linear("u", src, "ffn_up", out=d.n_ff, width=d.n_embd),
            Act(dst="u", src="u", act=act),
            self.linear("d", "u", "ffn_down", out=d.n_embd, width=d.n_ff),
        ]

    def experts(
        self,
        src: str,
        *,
        count: int,
        used: int,
        width: int,
        act: Activation | Literal["clamped_swiglu"] = "silu",
    ) -> list[Op]:
        """d = the chosen experts' sum, each `width` wide inside; s holds the router's scores."""
        d, p = self._d, self._prefix
        if width % 16 or d.n_embd % 16:
            raise UnsupportedError(
                f"experts of {width} by {d.n_embd}: the native engine needs multiples of 16; "
                f"{OTHER_BACKEND}",
                backend="native",
            )
        tensor, optional = self._ckpt.tensor, self._ckpt.optional
        return [
            self.linear("s", src, "ffn_gate_inp", out=count, width=d.n_embd),
            Experts(
                dst="d",
                src=src,
                scores="s",
                gate=tensor(f"{p}.ffn_gate_exps.weight", count, width, d.n_embd),
                up=tensor(f"{p}.ffn_up_exps.weight", count, width, d.n_embd),
                down=tensor(f"{p}.ffn_down_exps.weight", count, d.n_embd, width),
                gate_bias=optional(f"{p}.ffn_gate_exps.bias", count, width),
                up_bias=optional(f"{p}.ffn_up_exps.bias", count, width),
                down_bias=optional(f"{p}.ffn_down_exps.bias", count, d.n_embd),
                experts=count,
                used=used,
                width=width,
                act=act,
            ),
        ]


def norm(
    ckpt: Checkpoint,
    d: Dims,
    dst: str,
    src: str,
    name: str,
    *,
    width: int | None = None,
    heads: int = 1,
) -> Norm:
    """The architecture's norm by <name>.weight; a layer norm may have <name>.bias."""
    width = width or d.n_embd
    return Norm(
        dst=dst,
        src=src,
        weight=ckpt.tensor(f"{name}.weight", width),
        bias=ckpt.optional(f"{name}.bias", width) if d.norm == "layer" else None,
        eps=d.eps,
        kind=d.norm,
        heads=heads,
    )


def expert_counts(ckpt: Checkpoint) -> tuple[int, int]:
    """(experts, how many of them a row uses); other ways to choose and weigh them are refused."""
    ckpt.refuse(
        "expert_shared_count",
        "expert_group_count",
        "expert_weights_scale",
        "leading_dense_block_count",
        "interleave_moe_layer_step",
    )
    ckpt.integer("expert_gating_func", 1, low=0, high=1)  # softmax, by name or by default
    count = ckpt.integer("expert_count", high=1 << 12)
    return count, ckpt.integer("expert_used_count", high=min(count, 64))


def turning(d: Dims, turn: Callable[..., Rope]) -> list[Op]:
    """q and k rotated; `turn` has the frequencies and the style."""
    turn = partial(turn, head_dim=d.head_dim)
    return [turn(buf="q", heads=d.heads), turn(buf="k", heads=d.kv_heads)]


def embedding(ckpt: Checkpoint, d: Dims, *, scale: float = 1.0) -> Embed:
    """x = the token's row."""
    weight = ckpt.tensor("token_embd.weight", d.n_vocab, d.n_embd)
    return Embed(dst="x", weight=weight, scale=scale)


def logits(
    ckpt: Checkpoint, d: Dims, *, scale: float = 1.0, softcap: float | None = None
) -> list[Op]:
    """The last norm and the logits, by output.weight or else the embedding's rows."""
    output = ckpt.optional("output.weight", d.n_vocab, d.n_embd)
    return [
        norm(ckpt, d, "h", "x", "output_norm"),
        Logits(src="h", weight=output or "token_embd.weight", scale=scale, softcap=softcap),
    ]


def hidden_states(ckpt: Checkpoint, d: Dims) -> list[Op]:
    """The last norm, whose rows the model gives."""
    return [norm(ckpt, d, "h", "x", "output_norm"), Output(src="h")]


def decoder(
    ckpt: Checkpoint,
    d: Dims,
    ops: Sequence[Op],
    *,
    windows: Sequence[int | None] | None = None,
    experts: int = 0,
    harmless: Mapping[str, str] | None = None,
    pooling: Pooling | None = None,
) -> Graph:
    """The whole graph. windows: of each layer; experts: how many scores the buffer s holds;
    harmless: tensors that may be left out, and why; pooling: what hidden states become, for a
    model that ends with them."""
    widths = {
        "x": d.n_embd,
        "h": d.n_embd,
        "n": d.n_embd,
        "q": d.width_q,
        "k": d.width_kv,
        "v": d.width_kv,
        "a": d.width_q,
        "g": d.n_ff,
        "u": d.n_ff,
        "d": d.n_embd,
        "s": experts,
    }
    used = {getattr(op, f.name) for op in ops for f in fields(op) if f.type == "str"}
    return Graph(
        arch=ckpt.arch,
        n_vocab=d.n_vocab,
        n_ctx_train=d.n_ctx_train,
        n_layers=d.n_layers,
        n_embd=d.n_embd,
        buffers={name: width for name, width in widths.items() if name in used},
        slots=tuple(
            KVSlot(kv_heads=d.kv_heads, head_dim=d.head_dim, window=window)
            for window in windows or [None] * d.n_layers
        ),
        ops=tuple(ops),
        n_ctx_switch=rope.switch(ckpt),
        notes=ckpt.finish(harmless),
        pooling=pooling,
    )
