"""Gemma 2 (arXiv:2408.00118).

Embeddings scaled by sqrt(n_embd); a norm before and after attention and feed-forward; GELU.
Every second layer, the first among them, sees a sliding window; attention scores and logits are
soft-capped. GGUF stores the norm weights with Gemma's +1 already added.

Window and caps have the released models' values where a file does not state them, as
llama.cpp's: its first converters wrote none.
"""

from __future__ import annotations

import math
from functools import partial

from insula.models import rope
from insula.models.blocks import Block, buffers
from insula.models.checkpoint import Checkpoint
from insula.models.gemma3 import attention_scale
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

CHANGES_THE_MATHS = ("expert_count", "logit_scale", "pooling_type")

#: The one model whose query_pre_attn_scalar is not the head width (see gemma3).
LAYERS_OF_27B = 46


def graph(ckpt: Checkpoint) -> Graph:
    """The op list of a gemma2 checkpoint."""
    ckpt.refuse(*CHANGES_THE_MATHS)
    d = ckpt.dims()
    freqs, mscale = rope.from_checkpoint(
        ckpt, n_rot=d.n_rot, base=ckpt.number("rope.freq_base", 10000.0)
    )
    window = ckpt.integer("attention.sliding_window", 4096)
    softcap = ckpt.number("attn_logit_softcapping", 50.0)
    scale = attention_scale(ckpt, d, layers_of_27b=LAYERS_OF_27B)
    turn = partial(Rope, head_dim=d.head_dim, freqs=freqs, style="neox", mscale=mscale)

    embedding = ckpt.tensor("token_embd.weight", d.n_vocab, d.n_embd)
    ops: list[Op] = [Embed(dst="x", weight=embedding, scale=math.sqrt(d.n_embd))]
    slots = []
    for i in range(d.n_layers):
        b = Block(ckpt, f"blk.{i}", eps=d.eps)
        layer_window = window if i % 2 == 0 else None
        slots.append(KVSlot(kv_heads=d.kv_heads, head_dim=d.head_dim, window=layer_window))
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
                scale=scale,
                window=layer_window,
                softcap=softcap,
            ),
            b.linear("d", "a", "attn_output", out=d.n_embd, width=d.width_q),
            b.norm("d", "d", "post_attention_norm", width=d.n_embd),
            Add(dst="x", src="d"),
            b.norm("h", "x", "ffn_norm", width=d.n_embd),
            b.linear("g", "h", "ffn_gate", out=d.n_ff, width=d.n_embd),
            b.linear("u", "h", "ffn_up", out=d.n_ff, width=d.n_embd),
            Glu(dst="g", gate="g", up="u", act="gelu_tanh"),
            b.linear("d", "g", "ffn_down", out=d.n_embd, width=d.n_ff),
            b.norm("d", "d", "post_ffw_norm", width=d.n_embd),
            Add(dst="x", src="d"),
        ]
    last_norm = ckpt.tensor("output_norm.weight", d.n_embd)
    output = ckpt.optional("output.weight", d.n_vocab, d.n_embd) or embedding
    ops += [
        Norm(dst="h", src="x", weight=last_norm, eps=d.eps),
        Logits(src="h", weight=output, softcap=ckpt.number("final_logit_softcapping", 30.0)),
    ]
    return Graph(
        arch=ckpt.arch,
        n_vocab=d.n_vocab,
        n_ctx_train=d.n_ctx_train,
        n_layers=d.n_layers,
        n_embd=d.n_embd,
        buffers=buffers(d),
        slots=tuple(slots),
        ops=tuple(ops),
        notes=ckpt.finish(),
    )
