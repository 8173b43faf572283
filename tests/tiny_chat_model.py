"""A llama of a few thousand weights with a vocabulary and a chat template, as a GGUF file.

Random weights from a seed: what it says means nothing, but it is always the same.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from golden.tiny_tokenizer import MERGES, byte_alphabet
from insula.formats.ggml_types import GGMLType
from insula.formats.gguf_writer import GGUFWriter

WIDTH, HEADS, LAYERS, HIDDEN, CONTEXT = 64, 4, 2, 96, 512
TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
SPECIAL = ["<|start|>", "<|end|>"]


def write_tiny(
    path: Path,
    *,
    template: str | None = TEMPLATE,
    name: str = "Tiny",
    context: int = CONTEXT,
    width: int = WIDTH,
    hidden: int = HIDDEN,
    spare: str = "unused",
) -> Path:
    """Write the model to `path`. spare: what the vocabulary's last tokens are called."""
    tokens = [*SPECIAL, *byte_alphabet(), *("".join(merge.split(" ")) for merge in MERGES)]
    tokens += [f"<|{spare}{i}|>" for i in range(320 - len(tokens))]
    kinds = [3 if token.startswith("<|") else 1 for token in tokens]
    writer = GGUFWriter(path)
    writer.add("general.architecture", "llama")
    writer.add("general.name", name)
    writer.add("general.license", "apache-2.0")
    for key, value in {
        "block_count": LAYERS,
        "context_length": context,
        "embedding_length": width,
        "feed_forward_length": hidden,
        "attention.head_count": HEADS,
        "attention.head_count_kv": HEADS // 2,
        "rope.dimension_count": width // HEADS,
        "vocab_size": len(tokens),
    }.items():
        writer.add(f"llama.{key}", value)
    writer.add("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add("tokenizer.ggml.model", "gpt2")
    writer.add("tokenizer.ggml.pre", "gpt-2")
    writer.add("tokenizer.ggml.tokens", tokens)
    writer.add("tokenizer.ggml.token_type", kinds)
    writer.add("tokenizer.ggml.merges", MERGES)
    writer.add("tokenizer.ggml.bos_token_id", 0)
    writer.add("tokenizer.ggml.eos_token_id", 1)
    writer.add("tokenizer.ggml.add_bos_token", False)
    if template is not None:
        writer.add("tokenizer.chat_template", template)
    random = np.random.default_rng(5)
    spread = 0.15 * (WIDTH / width) ** 0.5

    def weight(name: str, *shape: int) -> None:
        values = random.normal(0, spread, shape).astype(np.float32)
        writer.add_tensor(name, values, GGMLType.F32)

    weight("token_embd.weight", len(tokens), width)
    half = width // 2
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"{block}.{norm}.weight", np.ones(width, np.float32), GGMLType.F32)
        weight(f"{block}.attn_q.weight", width, width)
        weight(f"{block}.attn_k.weight", half, width)
        weight(f"{block}.attn_v.weight", half, width)
        weight(f"{block}.attn_output.weight", width, width)
        weight(f"{block}.ffn_gate.weight", hidden, width)
        weight(f"{block}.ffn_up.weight", hidden, width)
        weight(f"{block}.ffn_down.weight", width, hidden)
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32), GGMLType.F32)
    weight("output.weight", len(tokens), width)
    writer.write()
    return path
