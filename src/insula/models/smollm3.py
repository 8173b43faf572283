"""SmolLM3 (huggingface.co/HuggingFaceTB/SmolLM3-3B).

A llama block, and in every fourth layer no positions at all (NoPE, arXiv:2501.18795): there
queries and keys are not rotated. GGUF has no key for that period; it is the architecture's.
Query and key rows are permuted as llama's: style "norm".
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

#: The last layer of every so many has no rotary positions.
PERIOD = 4

CHANGES_THE_MATHS = (
    "expert_count",
    "attention.scale",
    "attention.sliding_window",
    "attn_logit_softcapping",
    "logit_scale",
    "pooling_type",
)


def graph(ckpt: Checkpoint) -> Graph:
    """The op list of a smollm3 checkpoint."""
    ckpt.refuse(*CHANGES_THE_MATHS)
    d = ckpt.dims()
    freqs, mscale = rope.from_checkpoint(ckpt, n_rot=d.n_rot, base=ckpt.number("rope.freq_base"))
    turn = partial(Rope, head_dim=d.head_dim, freqs=freqs, style="norm", mscale=mscale)
    turned = (turn(buf="q", heads=d.heads), turn(buf="k", heads=d.kv_heads))

    embedding = ckpt.tensor("token_embd.weight", d.n_vocab, d.n_embd)
    ops: list[Op] = [Embed(dst="x", weight=embedding)]
    for i in range(d.n_layers):
        b = Block(ckpt, f"blk.{i}", eps=d.eps)
        ops += [
            b.norm("h", "x", "attn_norm", width=d.n_embd),
            b.linear("q", "h", "attn_q", out=d.width_q, width=d.n_embd),
            b.linear("k", "h", "attn_k", out=d.width_kv, width=d.n_embd),
            b.linear("v", "h", "attn_v", out=d.width_kv, width=d.n_embd),
            *(turned if i % PERIOD < PERIOD - 1 else ()),
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
        notes=ckpt.finish(),
    )
