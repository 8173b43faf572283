"""Qwen3, dense and with experts (arXiv:2505.09388).

A llama block whose query and key heads are normed, each head by itself, before the rotation.
Heads are as wide as attention.key_length says (128 in the released models, whatever n_embd is);
rotated pairs lie half a head apart: style "neox". With experts it is called qwen3moe.
"""

from __future__ import annotations

from functools import partial

from insula.models import rope
from insula.models.blocks import (
    ADD,
    Block,
    decoder,
    embedding,
    expert_counts,
    logits,
    turning,
)
from insula.models.checkpoint import Checkpoint
from insula.ops.graph import Graph, Op, Rope

CHANGES_THE_MATHS = (
    "attention.scale",
    "attention.sliding_window",
    "attn_logit_softcapping",
    "logit_scale",
    "pooling_type",
)


def graph(ckpt: Checkpoint, *, mixture: bool = False) -> Graph:
    """The op list of a qwen3 checkpoint, or (mixture) of a qwen3moe one."""
    if not mixture:
        ckpt.refuse("expert_count")
    ckpt.refuse(*CHANGES_THE_MATHS)
    d = ckpt.dims()
    freqs, mscale = rope.from_checkpoint(ckpt, n_rot=d.n_rot, base=ckpt.number("rope.freq_base"))
    turned = turning(d, partial(Rope, freqs=freqs, style="neox", mscale=mscale))
    experts, used = expert_counts(ckpt) if mixture else (0, 0)
    width = ckpt.integer("expert_feed_forward_length") if mixture else d.n_ff
    ops: list[Op] = [embedding(ckpt, d)]
    for i in range(d.n_layers):
        b = Block(ckpt, i, d)
        ops += [b.norm("h", "x", "attn_norm"), *b.qkv("h"), *b.head_norms(), *turned]
        ops += [*b.attention(), ADD]
        ops += [b.norm("h", "x", "ffn_norm")]
        ops += b.experts("h", count=experts, used=used, width=width) if mixture else b.gated("h")
        ops += [ADD]
    ops += logits(ckpt, d)
    return decoder(ckpt, d, ops, experts=experts)
