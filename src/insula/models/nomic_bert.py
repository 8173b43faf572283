"""Nomic Embed's BERT (arXiv:2402.01613).

BERT with rotary positions, style "neox", and a gated feed-forward; its linears have no biases.
Refused: experts (nomic-bert-moe is its own name).
"""

from __future__ import annotations

from functools import partial

from insula.models import pooling, rope
from insula.models.bert import token_types
from insula.models.blocks import ADD, Block, decoder, embedding, norm, turning
from insula.models.checkpoint import Checkpoint
from insula.ops.graph import Graph, Op, Output, Rope

CHANGES_THE_MATHS = (
    "expert_count",
    "attention.scale",
    "attention.sliding_window",
    "attn_logit_softcapping",
    "moe_every_n_layers",
)


def graph(ckpt: Checkpoint) -> Graph:
    """The op list of a nomic-bert checkpoint."""
    ckpt.refuse(*CHANGES_THE_MATHS)
    ckpt.need_both_directions()
    d = ckpt.dims("layer")
    freqs, mscale = rope.from_checkpoint(ckpt, n_rot=d.n_rot, base=ckpt.number("rope.freq_base"))
    turned = turning(d, partial(Rope, freqs=freqs, style="neox", mscale=mscale))
    ops: list[Op] = [
        embedding(ckpt, d),
        *token_types(ckpt, d.n_embd),
        norm(ckpt, d, "x", "x", "token_embd_norm"),
    ]
    for i in range(d.n_layers):
        b = Block(ckpt, i, d)
        ops += [*b.fused_qkv("x"), *turned, *b.attention(causal=False), ADD]
        ops += [b.norm("x", "x", "attn_output_norm"), *b.gated("x"), ADD]
        ops.append(b.norm("x", "x", "layer_output_norm"))
    ops.append(Output(src="x"))
    pooled = pooling.from_checkpoint(ckpt, n_embd=d.n_embd)
    return decoder(ckpt, d, ops, pooling=pooled)
