"""BERT (arXiv:1810.04805), and RoBERTa and XLM-R (arXiv:1907.11692, 1911.02116), as encoders.

Every row sees its whole sequence. Learned positions, which the embedding adds to tokens and their
types; norms after attention and feed-forward, of the sum with what went in. GGUF's table of
positions begins at the first one that is used, which in RoBERTa is not row 0 of the checkpoint's.
The result is hidden states: embeddings by the pooling that the file states, or scores of a head.
"""

from __future__ import annotations

from insula.models import pooling
from insula.models.blocks import ADD, Block, decoder, embedding, norm
from insula.models.checkpoint import Checkpoint
from insula.ops.graph import Graph, Op, Output, Positions, TokenTypes

CHANGES_THE_MATHS = (
    "expert_count",
    "attention.scale",
    "attention.sliding_window",
    "attn_logit_softcapping",
    "moe_every_n_layers",
)


def graph(ckpt: Checkpoint) -> Graph:
    """The op list of a bert checkpoint."""
    ckpt.refuse(*CHANGES_THE_MATHS)
    ckpt.need_both_directions()
    d = ckpt.dims("layer")
    places = ckpt.tensor("position_embd.weight", d.n_ctx_train, d.n_embd)
    ops: list[Op] = [
        embedding(ckpt, d),
        *token_types(ckpt, d.n_embd),
        Positions(dst="x", weight=places),
        norm(ckpt, d, "x", "x", "token_embd_norm"),
    ]
    for i in range(d.n_layers):
        b = Block(ckpt, i, d)
        fused = ckpt.present(f"blk.{i}.attn_qkv.weight")
        ops += b.fused_qkv("x") if fused else b.qkv("x")
        ops += [*b.attention(causal=False), ADD, b.norm("x", "x", "attn_output_norm")]
        ops += [*b.plain("x", act="gelu"), ADD, b.norm("x", "x", "layer_output_norm")]
    ops.append(Output(src="x"))
    pooled = pooling.from_checkpoint(ckpt, n_embd=d.n_embd, head=True)
    return decoder(ckpt, d, ops, pooling=pooled)


def token_types(ckpt: Checkpoint, n_embd: int) -> list[Op]:
    """The types' rows added, where the file has any."""
    if not ckpt.present("token_types.weight"):
        return []
    n_types = ckpt.shape("token_types.weight")[0]
    return [TokenTypes(dst="x", weight=ckpt.tensor("token_types.weight", n_types, n_embd))]
