"""GPT-2 (Radford et al. 2019), and what is trained in its shape, from letters up.

Learned positions, layer norms with biases, query, key and value as one tensor, GELU by its tanh
approximation. The context is as long as the table of positions.
"""

from __future__ import annotations

from insula.models.blocks import ADD, Block, decoder, embedding, logits
from insula.models.checkpoint import Checkpoint
from insula.ops.graph import Graph, Op, Positions

CHANGES_THE_MATHS = (
    "expert_count",
    "attention.scale",
    "attention.sliding_window",
    "attn_logit_softcapping",
    "logit_scale",
    "pooling_type",
)


def graph(ckpt: Checkpoint) -> Graph:
    """The op list of a gpt2 checkpoint."""
    ckpt.refuse(*CHANGES_THE_MATHS)
    d = ckpt.dims("layer")
    places = ckpt.tensor("position_embd.weight", d.n_ctx_train, d.n_embd)
    ops: list[Op] = [embedding(ckpt, d), Positions(dst="x", weight=places)]
    for i in range(d.n_layers):
        b = Block(ckpt, i, d)
        ops += [b.norm("h", "x", "attn_norm"), *b.fused_qkv("h"), *b.attention(), ADD]
        ops += [b.norm("h", "x", "ffn_norm"), *b.plain("h", act="gelu_tanh"), ADD]
    ops += logits(ckpt, d)
    return decoder(ckpt, d, ops)
