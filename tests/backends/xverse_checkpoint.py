"""Tiny random checkpoints of architectures that the native engine does not know.

Written with the gguf package, llama.cpp's own writer, so that the files are what its converters
produce. Seeded: the same bytes each time. The vocabulary is byte-level BPE: 256 bytes in GPT-2's
stand-ins, a few merges, and three control tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

BOS, END, START = "<|endoftext|>", "<|im_end|>", "<|im_start|>"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MERGES = ["t h", "th e", "Ġ a", "Ġ the", "i n", "e r", "Ġ t"]


def byte_stand_ins() -> list[str]:
    """GPT-2's printable character for each byte, by byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table, extra = {}, 0
    for byte in range(256):
        if byte in printable:
            table[byte] = chr(byte)
        else:
            table[byte] = chr(0x100 + extra)
            extra += 1
    return [table[b] for b in range(256)]


def vocabulary() -> list[str]:
    """256 bytes, one token per merge, three control tokens."""
    return [*byte_stand_ins(), *(m.replace(" ", "") for m in MERGES), BOS, END, START]


def write_xverse(
    path: Path,
    *,
    pre: str = "qwen2",
    layers: int = 2,
    seed: int = 8,
    eos_id: int | None = None,
    context: int = 512,
    tensors_per_file: int = 0,
) -> Path:
    """A random XVERSE of 64 dimensions: Llama by another name.

    tensors_per_file: write it in parts of so many tensors; the first part is returned.
    """
    import gguf

    rng = np.random.default_rng(seed)
    d, ff, heads, kv = 64, 128, 4, 2
    head = d // heads
    writer = gguf.GGUFWriter(path, "xverse", split_max_tensors=tensors_per_file)
    _add_metadata(writer, pre=pre, d=d, ff=ff, heads=heads, kv=kv, layers=layers, eos_id=eos_id)
    writer.add_context_length(context)
    tokens = vocabulary()

    def tensor(name: str, *shape: int, scale: float = 0.15, around: float = 0.0) -> None:
        values = rng.standard_normal(shape).astype(np.float32) * scale + around
        writer.add_tensor(name, values.astype(np.float32))

    tensor("token_embd.weight", len(tokens), d, scale=1.0)
    for i in range(layers):
        tensor(f"blk.{i}.attn_norm.weight", d, around=1.0)
        for part, out in (("q", d), ("k", kv * head), ("v", kv * head)):
            tensor(f"blk.{i}.attn_{part}.weight", out, d)
        tensor(f"blk.{i}.attn_output.weight", d, d)
        tensor(f"blk.{i}.ffn_norm.weight", d, around=1.0)
        tensor(f"blk.{i}.ffn_gate.weight", ff, d)
        tensor(f"blk.{i}.ffn_up.weight", ff, d)
        tensor(f"blk.{i}.ffn_down.weight", d, ff)
    tensor("output_norm.weight", d, around=1.0)
    tensor("output.weight", len(tokens), d, scale=0.4)
    _write(writer)
    return min(path.parent.glob(f"{path.stem}-*.gguf")) if tensors_per_file else path


def write_llama_iq3(path: Path) -> Path:
    """A Llama of one layer whose queries are in IQ3_S, all zeros: a format that native lacks."""
    import gguf

    d, ff, heads = 256, 256, 4
    writer = gguf.GGUFWriter(path, "llama")
    _add_metadata(writer, pre="qwen2", d=d, ff=ff, heads=heads, kv=heads, layers=1)
    writer.add_context_length(512)
    shapes = {
        "token_embd.weight": (len(vocabulary()), d),
        "output_norm.weight": (d,),
        **{f"blk.0.{name}_norm.weight": (d,) for name in ("attn", "ffn")},
        **{f"blk.0.attn_{name}.weight": (d, d) for name in ("k", "v", "output")},
        **{f"blk.0.ffn_{name}.weight": (ff, d) for name in ("gate", "up", "down")},
    }
    for name, shape in shapes.items():
        writer.add_tensor(name, np.ones(shape, np.float32))
    iq3 = np.zeros((d, d // 256 * 110), np.uint8)
    writer.add_tensor("blk.0.attn_q.weight", iq3, raw_dtype=gguf.GGMLQuantizationType.IQ3_S)
    _write(writer)
    return path


def _add_metadata(
    writer: Any,
    *,
    pre: str,
    d: int,
    ff: int,
    heads: int,
    kv: int,
    layers: int,
    eos_id: int | None = None,
) -> None:
    tokens = vocabulary()
    writer.add_name(f"tiny-{writer.arch}")
    writer.add_embedding_length(d)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(ff)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_file_type(0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (len(tokens) - 3) + [3, 3, 3])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(tokens.index(BOS))
    writer.add_eos_token_id(tokens.index(END) if eos_id is None else eos_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)


def _write(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
