"""Granite 3, the dense models (arXiv:2405.04324; huggingface.co/ibm-granite).

A llama block with four numbers of its own: the embedding, what each half adds to the residual
stream, the attention's scores and the logits are scaled; the last one divides. Query and key
rows are permuted as llama's: style "norm". Refused: experts (granitemoe is its own name).
"""

from __future__ import annotations

from functools import partial

from insula.errors import UnsupportedError
from insula.models import rope
from insula.models.blocks import Block, buffers
from insula.models.checkpoint import OTHER_BACKEND, Checkpoint
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
    Scale,
)

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
    turn = partial(Rope, head_dim=d.head_dim, freqs=freqs, style="norm", mscale=mscale)
    residual = Scale(buf="d", factor=ckpt.number_or_none("residual_scale") or 1.0)

    embedding = ckpt.tensor("token_embd.weight", d.n_vocab, d.n_embd)
    embedding_scale = ckpt.number_or_none("embedding_scale") or 1.0
    ops: list[Op] = [Embed(dst="x", weight=embedding, scale=embedding_scale)]
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
                scale=ckpt.number_or_none("attention.scale") or d.head_dim**-0.5,
            ),
            b.linear("d", "a", "attn_output", out=d.n_embd, width=d.width_q),
            residual,
            Add(dst="x", src="d"),
            b.norm("h", "x", "ffn_norm", width=d.n_embd),
            b.linear("g", "h", "ffn_gate", out=d.n_ff, width=d.n_embd),
            b.linear("u", "h", "ffn_up", out=d.n_ff, width=d.n_embd),
            Glu(dst="g", gate="g", up="u", act="silu"),
            b.linear("d", "g", "ffn_down", out=d.n_embd, width=d.n_ff),
            residual,
            Add(dst="x", src="d"),
        ]
    last_norm = ckpt.tensor("output_norm.weight", d.n_embd)
    output = ckpt.optional("output.weight", d.n_vocab, d.n_embd) or embedding
    ops += [
        Norm(dst="h", src="x", weight=last_norm, eps=d.eps),
        Logits(src="h", weight=output, scale=1 / ckpt.number("logit_scale")),
    ]
    return Graph(
        arch=ckpt.arch,
        n_vocab=d.n_vocab,
        n_ctx_train=d.n_ctx_train,
        n_layers=d.n_layers,
        n_embd=d.n_embd,
        buffers=buffers(d),
        slots=(KVSlot(kv_heads=d.kv_heads, head_dim=d.head_dim),) * d.n_layers,
        ops=tuple(ops),
        notes=ckpt.finish(),
    )
