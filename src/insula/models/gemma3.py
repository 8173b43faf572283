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
from insula.models.blocks import Block, buffers
from insula.models.checkpoint import Checkpoint, Dims
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
    local_freqs = rope.plain(d.n_rot, local_base)
    window = ckpt.integer("attention.sliding_window", 0, low=0) or None
    period = ckpt.integer("attention.sliding_window_pattern", 6)
    scale = attention_scale(ckpt, d, layers_of_27b=LAYERS_OF_27B)
    turn = partial(Rope, head_dim=d.head_dim, style="neox")

    embedding = ckpt.tensor("token_embd.weight", d.n_vocab, d.n_embd)
    ops: list[Op] = [Embed(dst="x", weight=embedding, scale=math.sqrt(d.n_embd))]
    slots = []
    for i in range(d.n_layers):
        b = Block(ckpt, f"blk.{i}", eps=d.eps)
        local = window is not None and i % period < period - 1
        layer_window = window if local else None
        layer_turn = partial(
            turn, freqs=local_freqs if local else freqs, mscale=1.0 if local else mscale
        )
        slots.append(KVSlot(kv_heads=d.kv_heads, head_dim=d.head_dim, window=layer_window))
        ops += [
            b.norm("h", "x", "attn_norm", width=d.n_embd),
            b.linear("q", "h", "attn_q", out=d.width_q, width=d.n_embd),
            b.linear("k", "h", "attn_k", out=d.width_kv, width=d.n_embd),
            b.linear("v", "h", "attn_v", out=d.width_kv, width=d.n_embd),
            b.norm("q", "q", "attn_q_norm", width=d.head_dim, heads=d.heads),
            b.norm("k", "k", "attn_k_norm", width=d.head_dim, heads=d.kv_heads),
            layer_turn(buf="q", heads=d.heads),
            layer_turn(buf="k", heads=d.kv_heads),
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
        Logits(src="h", weight=output, softcap=ckpt.number_or_none("final_logit_softcapping")),
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
        notes=ckpt.finish(HARMLESS),
    )


def attention_scale(ckpt: Checkpoint, d: Dims, *, layers_of_27b: int) -> float:
    """1 / sqrt(query_pre_attn_scalar), by attention.scale if a file states it."""
    if ckpt.has("attention.scale"):
        return ckpt.number("attention.scale")
    scalar = d.n_embd / d.heads if d.n_layers == layers_of_27b else d.head_dim
    return 1 / math.sqrt(scalar)
