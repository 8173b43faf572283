"""Granite 3, the dense models (arXiv:2405.04324; huggingface.co/ibm-granite).

A llama block with four numbers of its own: the embedding, what each half adds to the residual
stream, the attention's scores and the logits are scaled; the last one divides. Query and key
rows are permuted as llama's: style "norm". Refused: experts (granitemoe is its own name).
"""

from __future__ import annotations

from functools import partial

from insula.errors import UnsupportedError
from insula.models import rope
from insula.models.blocks import ADD, Block, decoder, embedding, logits, turning
from insula.models.checkpoint import OTHER_BACKEND, Checkpoint
from insula.ops.graph import Graph, Op, Rope, Scale

CHANGES_THE_MATHS = (
    "expert_count",
    "attention.sliding_window",
    "attn_logit_softcapping",
    "pooling_type",
)


def graph(ckpt: Checkpoint) -> Graph:
    """The op list of a granite checkpoint."""
    ckpt.refuse(*CHANGES_THE_MATHS)
    if not ckpt.flag("rope.scaling.finetuned", default=True):
        raise UnsupportedError(  # what llama.cpp takes as the switch for rotary positions here
            f"the native engine has no {ckpt.arch} without rotary positions "
            f"({ckpt.arch}.rope.scaling.finetuned is false); {OTHER_BACKEND}",
            backend="native",
        )
    d = ckpt.dims()
    freqs, mscale = rope.from_checkpoint(
        ckpt, n_rot=d.n_rot, base=ckpt.number("rope.freq_base", 10000.0)
    )
    turned = turning(d, partial(Rope, freqs=freqs, style="norm", mscale=mscale))
    residual = Scale(buf="d", factor=ckpt.number_or_none("residual_scale") or 1.0)
    scale = ckpt.number_or_none("attention.scale")
    ops: list[Op] = [embedding(ckpt, d, scale=ckpt.number_or_none("embedding_scale") or 1.0)]
    for i in range(d.n_layers):
        b = Block(ckpt, i, d)
        ops += [b.norm("h", "x", "attn_norm"), *b.qkv("h"), *turned]
        ops += [*b.attention(scale=scale), residual, ADD]
        ops += [b.norm("h", "x", "ffn_norm"), *b.gated("h"), residual, ADD]
    ops += logits(ckpt, d, scale=1 / ckpt.number("logit_scale"))
    return decoder(ckpt, d, ops)
