"""OLMo 2 (arXiv:2501.00656).

No norm before attention and feed-forward: what they give is normed and then added. Queries and
keys are normed too, over their full width, all heads together, before the rotation; rotated
pairs lie half a head apart: style "neox". Refused: OLMo 3's sliding windows.
"""

from __future__ import annotations

from functools import partial

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
    "attn_logit_softcapping",
    "logit_scale",
    "pooling_type",
)


def graph(ckpt: Checkpoint) -> Graph:
    """The op list of a olmo2 checkpoint."""
    ckpt.refuse(*CHANGES_THE_MATHS)
    d = ckpt.dims()
    freqs, mscale = rope.from_checkpoint(ckpt, n_rot=d.n_rot, base=ckpt.number("rope.freq_base"))
    turn = partial(Rope, head_dim=d.head_dim, freqs=freqs, style="neox", mscale=mscale)

    embedding = ckpt.tensor("token_embd.weight", d.n_vocab, d.n_embd)
    ops: list[Op] = [Embed(dst="x", weight=embedding)]
    for i in range(d.n_layers):
        b = Block(ckpt, f"blk.{i}", eps=d.eps)
        ops += [
            b.linear("q", "x", "attn_q", out=d.width_q, width=d.n_embd),
            b.linear("k", "x", "attn_k", out=d.width_kv, width=d.n_embd),
            b.linear("v", "x", "attn_v", out=d.width_kv, width=d.n_embd),
            b.norm("q", "q", "attn_q_norm", width=d.width_q),
            b.norm("k", "k", "attn_k_norm", width=d.width_kv),
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
            b.norm("d", "d", "post_attention_norm", width=d.n_embd),
            Add(dst="x", src="d"),
            b.linear("g", "x", "ffn_gate", out=d.n_ff, width=d.n_embd),
            b.linear("u", "x", "ffn_up", out=d.n_ff, width=d.n_embd),
            Glu(dst="g", gate="g", up="u", act="silu"),
            b.linear("d", "g", "ffn_down", out=d.n_embd, width=d.n_ff),
            b.norm("d", "d", "post_ffw_norm", width=d.n_embd),
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
        notes=ckpt.finish(),
    )
