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
from insula.models.blocks import ADD, Block, decoder, embedding, logits, turning
from insula.models.checkpoint import Checkpoint
from insula.models.gemma3 import attention_scale
from insula.ops.graph import Graph, Op, Rope

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
    windows = [window if i % 2 == 0 else None for i in range(d.n_layers)]
    softcap = ckpt.number("attn_logit_softcapping", 50.0)
    scale = attention_scale(ckpt, d, layers_of_27b=LAYERS_OF_27B)
    turned = turning(d, partial(Rope, freqs=freqs, style="neox", mscale=mscale))
    ops: list[Op] = [embedding(ckpt, d, scale=math.sqrt(d.n_embd))]
    for i in range(d.n_layers):
        b = Block(ckpt, i, d)
        ops += [
            b.norm("h", "x", "attn_norm"),
            *b.qkv("h"),
            *turned,
            *b.attention(scale=scale, window=windows[i], softcap=softcap),
            b.norm("d", "d", "post_attention_norm"),
            ADD,
            b.norm("h", "x", "ffn_norm"),
            *b.gated("h", act="gelu_tanh"),
            b.norm("d", "d", "post_ffw_norm"),
            ADD,
        ]
    ops += logits(ckpt, d, softcap=ckpt.number("final_logit_softcapping", 30.0))
    return decoder(ckpt, d, ops, windows=windows)
