"""Phi-3, and Phi-4, which has the same name (arXiv:2404.14219, 2412.08905).

A llama block whose query, key and value weights are one tensor, the gate and up weights another;
each is used by rows. Rotated pairs lie half a head apart: style "neox". A sliding window, where
the file states one, is every layer's.
Refused: longrope (Phi-3.5, Phi-4-mini and the 128k models), whose factors follow from the
context that is asked for, which no op list knows.
"""

from __future__ import annotations

from functools import partial

from insula.models import rope
from insula.models.blocks import Block, buffers
from insula.models.checkpoint import Checkpoint
from insula.ops.graph import (
    Add,
    Attention,
    Embed,
    Glu,
    Graph,
    KVSlot,
    Logits,
    Norm,
    Op,
    Rope,
)

CHANGES_THE_MATHS = (
    "expert_count",
    "attention.scale",
    "attn_logit_softcapping",
    "logit_scale",
    "pooling_type",
)


def graph(ckpt: Checkpoint) -> Graph:
    """The op list of a phi3 checkpoint."""
    ckpt.refuse(*CHANGES_THE_MATHS)
    d = ckpt.dims()
    freqs, mscale = rope.from_checkpoint(
        ckpt, n_rot=d.n_rot, base=ckpt.number("rope.freq_base", 10000.0)
    )
    turn = partial(Rope, head_dim=d.head_dim, freqs=freqs, style="neox", mscale=mscale)
    window = ckpt.integer("attention.sliding_window", 0, low=0) or None
    fused = d.width_q + 2 * d.width_kv

    embedding = ckpt.tensor("token_embd.weight", d.n_vocab, d.n_embd)
    ops: list[Op] = [Embed(dst="x", weight=embedding)]
    for i in range(d.n_layers):
        b = Block(ckpt, f"blk.{i}", eps=d.eps)
        qkv = partial(b.part, src="h", name="attn_qkv", of=fused, width=d.n_embd)
        gate_up = partial(b.part, src="h", name="ffn_up", of=2 * d.n_ff, width=d.n_embd)
        ops += [
            b.norm("h", "x", "attn_norm", width=d.n_embd),
            qkv("q", rows=(0, d.width_q)),
            qkv("k", rows=(d.width_q, d.width_q + d.width_kv)),
            qkv("v", rows=(d.width_q + d.width_kv, fused)),
            turn(buf="q", heads=d.heads),
            turn(buf="k", heads=d.kv_heads),
            Attention(
                dst="a",
                q="q",
                k="k",
                v="v",
                slot=i,
                heads=d.heads,
                kv_heads=d.kv_heads,
                head_dim=d.head_dim,
                scale=d.head_dim**-0.5,
                window=window,
            ),
            b.linear("d", "a", "attn_output", out=d.n_embd, width=d.width_q),
            Add(dst="x", src="d"),
            b.norm("h", "x", "ffn_norm", width=d.n_embd),
            gate_up("g", rows=(0, d.n_ff)),
            gate_up("u", rows=(d.n_ff, 2 * d.n_ff)),
            Glu(dst="g", gate="g", up="u", act="silu"),
            b.linear("d", "g", "ffn_down", out=d.n_embd, width=d.n_ff),
            Add(dst="x", src="d"),
        ]
    last_norm = ckpt.tensor("output_norm.weight", d.n_embd)
    output = ckpt.optional("output.weight", d.n_vocab, d.n_embd) or embedding
    ops += [Norm(dst="h", src="x", weight=last_norm, eps=d.eps), Logits(src="h", weight=output)]
    return Graph(
        arch=ckpt.arch,
        n_vocab=d.n_vocab,
        n_ctx_train=d.n_ctx_train,
        n_layers=d.n_layers,
        n_embd=d.n_embd,
        buffers=buffers(d),
        slots=(KVSlot(kv_heads=d.kv_heads, head_dim=d.head_dim, window=window),) * d.n_layers,
        ops=tuple(ops),
        notes=ckpt.finish(),
    )
