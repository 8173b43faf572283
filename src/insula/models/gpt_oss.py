"""gpt-oss (arXiv:2508.10925; huggingface.co/openai/gpt-oss-20b).

A mixture of experts with a clamped gate and biases everywhere. Every head has a sink: a score
that takes part in the softmax and gives nothing. Every second layer, the first among them, sees
a sliding window; all turn by the same YaRN frequencies, whose ramp is not rounded to whole pairs
(the released code's way; llama.cpp rounds). Rotated pairs lie half a head apart: style "neox".
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
    "attn_logit_softcapping",
    "logit_scale",
    "pooling_type",
)


def graph(ckpt: Checkpoint) -> Graph:
    """The op list of a gpt-oss checkpoint."""
    ckpt.refuse(*CHANGES_THE_MATHS)
    d = ckpt.dims()
    freqs, mscale = rope.from_checkpoint(
        ckpt, n_rot=d.n_rot, base=ckpt.number("rope.freq_base"), whole_pairs=False
    )
    turned = turning(d, partial(Rope, freqs=freqs, style="neox", mscale=mscale))
    window = ckpt.integer("attention.sliding_window")
    windows = [window if i % 2 == 0 else None for i in range(d.n_layers)]
    experts, used = expert_counts(ckpt)
    width = ckpt.integer("expert_feed_forward_length")
    ops: list[Op] = [embedding(ckpt, d)]
    for i in range(d.n_layers):
        b = Block(ckpt, i, d)
        ops += [b.norm("h", "x", "attn_norm"), *b.qkv("h"), *turned]
        ops += [*b.attention(window=windows[i], sinks="attn_sinks.weight"), ADD]
        ops += [b.norm("h", "x", "post_attention_norm")]
        ops += b.experts("h", count=experts, used=used, width=width, act="clamped_swiglu")
        ops += [ADD]
    ops += logits(ckpt, d)
    return decoder(ckpt, d, ops, windows=windows, experts=experts)
