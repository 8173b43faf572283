"""Llama: also Mistral, SmolLM2, TinyLlama and whatever GGUF files under the name "llama".

RMS norm, rotary positions, grouped-query attention, SwiGLU (arXiv:2302.13971, 2307.09288).
GGUF stores the query and key rows permuted so that each rotated pair is adjacent: style "norm".
Qwen2 (arXiv:2407.10671) is the same block unpermuted, style "neox", with biases for q, k and v.
Mixtral (arXiv:2401.04088) has a mixture of experts in the feed-forward's place.
Refused: every key that would change the maths.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

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
    "attention.clamp_kqv",
    "attn_logit_softcapping",
    "embedding_scale",
    "residual_scale",
    "logit_scale",
    "pooling_type",
)

HARMLESS = {
    r"blk\.\d+\.(attn_rot_embd|attn\.rotary_emb\.inv_freq)(\.weight)?": (
        "rotary frequencies as old converters wrote them; they follow from the metadata"
    ),
}


def graph(ckpt: Checkpoint, *, style: Literal["norm", "neox"] = "norm") -> Graph:
    """The op list of a llama checkpoint, or of another one that differs in the rotation's style."""
    ckpt.refuse(*CHANGES_THE_MATHS)
    if ckpt.arch != "llama":
        ckpt.refuse("expert_count")
    d = ckpt.dims()
    freqs, mscale = rope.from_checkpoint(
        ckpt, n_rot=d.n_rot, base=ckpt.number("rope.freq_base", 10000.0)
    )
    turned = turning(d, partial(Rope, freqs=freqs, style=style, mscale=mscale))
    experts, used = expert_counts(ckpt) if ckpt.number_or_none("expert_count") else (0, 0)
    ops: list[Op] = [embedding(ckpt, d)]
    for i in range(d.n_layers):
        b = Block(ckpt, i, d)
        ops += [b.norm("h", "x", "attn_norm"), *b.qkv("h"), *turned, *b.attention(), ADD]
        ops += [b.norm("h", "x", "ffn_norm")]
        ops += b.experts("h", count=experts, used=used, width=d.n_ff) if experts else b.gated("h")
        ops += [ADD]
    ops += logits(ckpt, d)
    return decoder(ckpt, d, ops, experts=experts, harmless=HARMLESS)
