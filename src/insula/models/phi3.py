"""Phi-3, and Phi-4, which has the same name (arXiv:2404.14219, 2412.08905).

A llama block whose query, key and value weights are one tensor, the gate and up weights another;
each is used by rows. Rotated pairs lie half a head apart: style "neox". A sliding window, where
the file states one, is every layer's. Phi-3.5, Phi-4-mini and the 128k models turn by longrope.
"""

from __future__ import annotations

from functools import partial

from insula.models import rope
from insula.models.blocks import ADD, Block, decoder, embedding, logits, turning
from insula.models.checkpoint import Checkpoint
from insula.ops.graph import Glu, Graph, Op, Rope

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
    turned = turning(d, partial(Rope, freqs=freqs, style="neox", mscale=mscale))
    window = ckpt.integer("attention.sliding_window", 0, low=0) or None
    fused = d.width_q + 2 * d.width_kv
    ops: list[Op] = [embedding(ckpt, d)]
    for i in range(d.n_layers):
        b = Block(ckpt, i, d)
        qkv = partial(b.part, src="h", name="attn_qkv", of=fused, width=d.n_embd)
        gate_up = partial(b.part, src="h", name="ffn_up", of=2 * d.n_ff, width=d.n_embd)
        ops += [
            b.norm("h", "x", "attn_norm"),
            qkv("q", rows=(0, d.width_q)),
            qkv("k", rows=(d.width_q, d.width_q + d.width_kv)),
            qkv("v", rows=(d.width_q + d.width_kv, fused)),
            *turned,
            *b.attention(window=window),
            ADD,
            b.norm("h", "x", "ffn_norm"),
            gate_up("g", rows=(0, d.n_ff)),
            gate_up("u", rows=(d.n_ff, 2 * d.n_ff)),
            Glu(dst="g", gate="g", up="u", act="silu"),
            b.linear("d", "g", "ffn_down", out=d.n_embd, width=d.n_ff),
            ADD,
        ]
    ops += logits(ckpt, d)
    return decoder(ckpt, d, ops, windows=[window] * d.n_layers)
