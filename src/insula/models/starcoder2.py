"""StarCoder2 (arXiv:2402.19173).

Layer norms and linears with biases, a plain feed-forward with GELU by its tanh approximation,
rotated pairs half a head apart: style "neox". A sliding window, where the file states one, is
every layer's; llama.cpp's converter states none and its StarCoder2 sees everything.
"""

from __future__ import annotations

from functools import partial

from insula.models import rope
from insula.models.blocks import ADD, Block, decoder, embedding, logits, turning
from insula.models.checkpoint import Checkpoint
from insula.ops.graph import Graph, Op, Rope

CHANGES_THE_MATHS = (
    "expert_count",
    "attention.scale",
    "attn_logit_softcapping",
    "logit_scale",
    "pooling_type",
)


def graph(ckpt: Checkpoint) -> Graph:
    """The op list of a starcoder2 checkpoint."""
    ckpt.refuse(*CHANGES_THE_MATHS)
    d = ckpt.dims("layer")
    freqs, mscale = rope.from_checkpoint(
        ckpt, n_rot=d.n_rot, base=ckpt.number("rope.freq_base", 10000.0)
    )
    turned = turning(d, partial(Rope, freqs=freqs, style="neox", mscale=mscale))
    window = ckpt.integer("attention.sliding_window", 0, low=0) or None
    ops: list[Op] = [embedding(ckpt, d)]
    for i in range(d.n_layers):
        b = Block(ckpt, i, d)
        ops += [b.norm("h", "x", "attn_norm"), *b.qkv("h"), *turned]
        ops += [*b.attention(window=window), ADD]
        ops += [b.norm("h", "x", "ffn_norm"), *b.plain("h", act="gelu_tanh"), ADD]
    ops += logits(ckpt, d)
    return decoder(ckpt, d, ops, windows=[window] * d.n_layers)
