"""StableLM 3B and 2 (arXiv:2402.17834).

A llama block with layer norms, in which a part of each head is rotated: style "neox". The 12B
model norms each query and key head with weights of its own, and computes attention and
feed-forward from the same norm of the residual stream: a file without ffn_norm does the latter,
as in llama.cpp, unless it says that it does not.
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
    """The op list of a stablelm checkpoint."""
    ckpt.refuse(*CHANGES_THE_MATHS)
    d = ckpt.dims("layer")
    freqs, mscale = rope.from_checkpoint(
        ckpt, n_rot=d.n_rot, base=ckpt.number("rope.freq_base", 10000.0)
    )
    turned = turning(d, partial(Rope, freqs=freqs, style="neox", mscale=mscale))
    said = ckpt.flag("use_parallel_residual", default=True)
    parallel = said and not ckpt.present("blk.0.ffn_norm.weight")
    head_norms = ckpt.present("blk.0.attn_q_norm.weight")
    ops: list[Op] = [embedding(ckpt, d)]
    for i in range(d.n_layers):
        b = Block(ckpt, i, d)
        ops += [b.norm("h", "x", "attn_norm"), *b.qkv("h")]
        if head_norms:
            ops += b.head_norms(own=True)
        ops += [*turned, *b.attention(), ADD]
        if not parallel:
            ops.append(b.norm("h", "x", "ffn_norm"))
        ops += [*b.gated("h"), ADD]
    ops += logits(ckpt, d)
    return decoder(ckpt, d, ops)
