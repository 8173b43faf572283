"""Llama: also Mistral, SmolLM2, TinyLlama and whatever GGUF files under the name "llama".

RMS norm, rotary positions, grouped-query attention, SwiGLU (arXiv:2302.13971, 2307.09288).
GGUF stores the query and key rows permuted so that each rotated pair is adjacent: style "norm".
Qwen2 (arXiv:2407.10671) is the same block unpermuted, style "neox", with biases for q, k and v.
Refused: experts (Mixtral), and every key that would change the maths.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

from insula.models import rope
from insula.models.blocks import Block, buffers
from insula.models.checkpoint import Checkpoint
from insula.ops.graph import (
    Add,
    Attention,
    Embed,
    Glu,
    Graph,
    KVSlot,
    Logits,
    Norm,
    Op,
    Rope,
)

CHANGES_THE_MATHS = (
    "expert_count",
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
    d = ckpt.dims()
    freqs, mscale = rope.from_checkpoint(
        ckpt, n_rot=d.n_rot, base=ckpt.number("rope.freq_base", 10000.0)
    )
    turn = partial(Rope, head_dim=d.head_dim, freqs=freqs, style=style, mscale=mscale)

    embedding = ckpt.tensor("token_embd.weight", d.n_vocab, d.n_embd)
    ops: list[Op] = [Embed(dst="x", weight=embedding)]
    for i in range(d.n_layers):
        b = Block(ckpt, f"blk.{i}", eps=d.eps)
        ops += [
            b.norm("h", "x", "attn_norm", width=d.n_embd),
            b.linear("q", "h", "attn_q", out=d.width_q, width=d.n_embd),
            b.linear("k", "h", "attn_k", out=d.width_kv, width=d.n_embd),
            b.linear("v", "h", "attn_v", out=d.width_kv, width=d.n_embd),
            turn(buf="q", heads=d.heads),
            turn(buf="k", heads=d.kv_heads),
            Attention(
                dst="a",
                q="q",
                k="k",
                v="v",
                slot=i,
                heads=d.heads,
                kv_heads=d.kv_heads,
                head_dim=d.head_dim,
                scale=d.head_dim**-0.5,
            ),
            b.linear("d", "a", "attn_output", out=d.n_embd, width=d.width_q),
            Add(dst="x", src="d"),
            b.norm("h", "x", "ffn_norm", width=d.n_embd),
            b.linear("g", "h", "ffn_gate", out=d.n_ff, width=d.n_embd),
            b.linear("u", "h", "ffn_up", out=d.n_ff, width=d.n_embd),
            Glu(dst="g", gate="g", up="u", act="silu"),
            b.linear("d", "g", "ffn_down", out=d.n_embd, width=d.n_ff),
            Add(dst="x", src="d"),
        ]
    last_norm = ckpt.tensor("output_norm.weight", d.n_embd)
    output = ckpt.optional("output.weight", d.n_vocab, d.n_embd) or embedding
    ops += [Norm(dst="h", src="x", weight=last_norm, eps=d.eps), Logits(src="h", weight=output)]
    return Graph(
        arch=ckpt.arch,
        n_vocab=d.n_vocab,
        n_ctx_train=d.n_ctx_train,
        n_layers=d.n_layers,
        n_embd=d.n_embd,
        buffers=buffers(d),
        slots=(KVSlot(kv_heads=d.kv_heads, head_dim=d.head_dim),) * d.n_layers,
        ops=tuple(ops),
        notes=ckpt.finish(HARMLESS),
    )
