"""Falcon 7B, 40B and 2 11B (arXiv:2311.16867).

Attention and feed-forward are computed from the same residual stream and both added to it. The
7B model has one norm for both and one key and value head for all query heads; 40B has several of
those and a norm each: attn_norm_2 is attention's then. GGUF stores all query rows, then all key
rows, then all value rows in attn_qkv. Rotated pairs lie half a head apart: style "neox".
Not in GGUF, so refused by the converter: ALiBi, and blocks one after the other (Falcon RW).
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
    "attention.max_alibi_bias",
    "attn_logit_softcapping",
    "logit_scale",
    "pooling_type",
)


def graph(ckpt: Checkpoint) -> Graph:
    """The op list of a falcon checkpoint."""
    ckpt.refuse(*CHANGES_THE_MATHS)
    d = ckpt.dims("layer")
    freqs, mscale = rope.from_checkpoint(
        ckpt, n_rot=d.n_rot, base=ckpt.number("rope.freq_base", 10000.0)
    )
    turned = turning(d, partial(Rope, freqs=freqs, style="neox", mscale=mscale))
    two_norms = ckpt.present("blk.0.attn_norm_2.weight")
    ops: list[Op] = [embedding(ckpt, d)]
    for i in range(d.n_layers):
        b = Block(ckpt, i, d)
        ops.append(b.norm("h", "x", "attn_norm"))
        if two_norms:
            ops.append(b.norm("n", "x", "attn_norm_2"))
        ops += [*b.fused_qkv("n" if two_norms else "h"), *turned, *b.attention(), ADD]
        ops += [*b.plain("h", act="gelu"), ADD]
    ops += logits(ckpt, d)
    return decoder(ckpt, d, ops)
