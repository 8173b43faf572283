"""SmolLM3 (huggingface.co/HuggingFaceTB/SmolLM3-3B).

A llama block, and in every fourth layer no positions at all (NoPE, arXiv:2501.18795): there
queries and keys are not rotated. GGUF has no key for that period; it is the architecture's.
Query and key rows are permuted as llama's: style "norm".
"""

from __future__ import annotations

from functools import partial

from insula.models import rope
from insula.models.blocks import ADD, Block, decoder, embedding, logits, turning
from insula.models.checkpoint import Checkpoint
from insula.ops.graph import Graph, Op, Rope

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
    turned = turning(d, partial(Rope, freqs=freqs, style="norm", mscale=mscale))
    ops: list[Op] = [embedding(ckpt, d)]
    for i in range(d.n_layers):
        b = Block(ckpt, i, d)
        ops += [b.norm("h", "x", "attn_norm"), *b.qkv("h")]
        ops += turned if i % PERIOD < PERIOD - 1 else []
        ops += [*b.attention(), ADD]
        ops += [b.norm("h", "x", "ffn_norm"), *b.gated("h"), ADD]
    ops += logits(ckpt, d)
    return decoder(ckpt, d, ops)
