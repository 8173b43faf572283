"""Gemma 3, the text model (arXiv:2503.19786).

Embeddings scaled by sqrt(n_embd); a norm before and after attention and feed-forward; query
and key heads normed; GELU. Five layers of six see a sliding window and turn by their own, local
rotary base; every sixth sees everything, and only there does a rotary scaling apply.
GGUF stores the norm weights with Gemma's +1 already added.

Vision tensors may lie in the same file; they do not touch text, and are noted as left out.
"""

from __future__ import annotations

import math
from functools import partial

from insula.models import rope
from insula.models.blocks import ADD, Block, decoder, embedding, logits, turning
from insula.models.checkpoint import Checkpoint, Dims
from insula.ops.graph import Graph, Op, Rope

CHANGES_THE_MATHS = ("expert_count", "attn_logit_softcapping", "logit_scale")

HARMLESS = {r"(v|mm)\..*": "the vision half of the model; the native engine reads text alone"}

#: GGUF has no key for query_pre_attn_scalar; the 27B (62 layers) is the one model where it is
#: not the head width but n_embd / heads (github.com/google/gemma_pytorch, gemma/config.py).
LAYERS_OF_27B = 62


def graph(ckpt: Checkpoint) -> Graph:
    """The op list of a gemma3 checkpoint."""
    ckpt.refuse(*CHANGES_THE_MATHS)
    d = ckpt.dims()
    # Ollama's converter writes rope.global/local.freq_base, everyone else the first names.
    base = ckpt.number(
        "rope.global.freq_base" if ckpt.has("rope.global.freq_base") else "rope.freq_base"
    )
    local_base = ckpt.number(
        "rope.local.freq_base" if ckpt.has("rope.local.freq_base") else "rope.freq_base_swa",
        10000.0,
    )
    freqs, mscale = rope.from_checkpoint(ckpt, n_rot=d.n_rot, base=base)
    window = ckpt.integer("attention.sliding_window", 0, low=0) or None
    period = ckpt.integer("attention.sliding_window_pattern", 6)
    windows = [window if i % period < period - 1 else None for i in range(d.n_layers)]
    scale = attention_scale(ckpt, d, layers_of_27b=LAYERS_OF_27B)
    far = turning(d, partial(Rope, freqs=freqs, style="neox", mscale=mscale))
    near = turning(d, partial(Rope, freqs=rope.plain(d.n_rot, local_base), style="neox"))
    ops: list[Op] = [embedding(ckpt, d, scale=math.sqrt(d.n_embd))]
    for i in range(d.n_layers):
        b = Block(ckpt, i, d)
        ops += [
            b.norm("h", "x", "attn_norm"),
            *b.qkv("h"),
            *b.head_norms(),
            *(far if windows[i] is None else near),
            *b.attention(scale=scale, window=windows[i]),
            b.norm("d", "d", "post_attention_norm"),
            ADD,
            b.norm("h", "x", "ffn_norm"),
            *b.gated("h", act="gelu_tanh"),
            b.norm("d", "d", "post_ffw_norm"),
            ADD,
        ]
    ops += logits(ckpt, d, softcap=ckpt.number_or_none("final_logit_softcapping"))
    return decoder(ckpt, d, ops, windows=windows, harmless=HARMLESS)


def attention_scale(ckpt: Checkpoint, d: Dims, *, layers_of_27b: int) -> float:
    """1 / sqrt(query_pre_attn_scalar), by attention.scale if a file states it."""
    if ckpt.has("attention.scale"):
        return ckpt.number("attention.scale")
    scalar = d.n_embd / d.heads if d.n_layers == layers_of_27b else d.head_dim
    return 1 / math.sqrt(scalar)
