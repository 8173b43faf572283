"""OLMo 2 (arXiv:2501.00656).

No norm before attention and feed-forward: what they give is normed and then added. Queries and
keys are normed too, over their full width, all heads together, before the rotation; rotated
pairs lie half a head apart: style "neox". Refused: OLMo 3's sliding windows.
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
    "attention.sliding_window",
    "attn_logit_softcapping",
    "logit_scale",
    "pooling_type",
)


def graph(ckpt: Checkpoint) -> Graph:
    """The op list of an olmo2 checkpoint."""
    ckpt.refuse(*CHANGES_THE_MATHS)
    d = ckpt.dims()
    freqs, mscale = rope.from_checkpoint(ckpt, n_rot=d.n_rot, base=ckpt.number("rope.freq_base"))
    turned = turning(d, partial(Rope, freqs=freqs, style="neox", mscale=mscale))
    ops: list[Op] = [embedding(ckpt, d)]
    for i in range(d.n_layers):
        b = Block(ckpt, i, d)
        ops += [
            *b.qkv("x"),
            b.norm("q", "q", "attn_q_norm", width=d.width_q),
            b.norm("k", "k", "attn_k_norm", width=d.width_kv),
            *turned,
            *b.attention(),
            b.norm("d", "d", "post_attention_norm"),
            ADD,
            *b.gated("x"),
            b.norm("d", "d", "post_ffw_norm"),
            ADD,
        ]
    ops += logits(ckpt, d)
    return decoder(ckpt, d, ops)
