"""Writes a llama model of random weights, for benchmarks: real shapes, real formats, no meaning.

    python tools/make_random_model.py OUT.gguf --vocab VOCABULARY.gguf [--format Q4_K_M]

Blocks are drawn directly in quantized bytes, so a model of a billion parameters takes seconds.
Scales are set so that each weight matrix keeps the size of what it multiplies, and activations
stay finite through any number of layers. The tokenizer is copied from another GGUF file (a
model's or a vocabulary's). The default shape is the 1.07B of the benchmarks, with a vocabulary
of 49,152 tokens (SmolLM2's): 16 layers, 2048 wide, 32 heads over 8, feed-forward 8192.
llama.cpp reads the file too.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np

from insula.formats.ggml_types import GGMLType
from insula.formats.gguf import GGUFFile
from insula.formats.gguf_writer import GGUFWriter

FILE_TYPES = {"F16": 1, "Q4_0": 2, "Q8_0": 7, "Q4_K_M": 15, "Q6_K": 18}
Q4_K, Q6_K, F32 = GGMLType.Q4_K, GGMLType.Q6_K, GGMLType.F32


def _halves(values: np.ndarray) -> np.ndarray:
    """float16 numbers as columns of bytes [n, 2]."""
    return values.astype("<f2").view(np.uint8).reshape(-1, 2)


def _scales(rng: np.random.Generator, n: int, size: float) -> np.ndarray:
    """One scale per block, varying by a third around `size`."""
    return size * rng.uniform(0.75, 1.25, n)


def q8_0(rng: np.random.Generator, n: int, std: float) -> np.ndarray:
    """[n, 34]: float16 d, 32 int8; uniform in -127..127 has a deviation of 73.6."""
    q = rng.integers(-127, 128, (n, 32), np.int8).view(np.uint8)
    return np.concatenate([_halves(_scales(rng, n, std / 73.6)), q], axis=1)


def q4_0(rng: np.random.Generator, n: int, std: float) -> np.ndarray:
    """[n, 18]: float16 d, 32 nibbles minus 8; 4.64 is their root mean square."""
    q = rng.integers(0, 256, (n, 16), np.uint8)
    return np.concatenate([_halves(_scales(rng, n, std / 4.64)), q], axis=1)


def q4_k(rng: np.random.Generator, n: int, std: float) -> np.ndarray:
    """[n, 144]: d, dmin, eight 6-bit scales and mins in 12 bytes, 256 nibbles.

    A weight is d*s*q - dmin*m; with m = s and dmin = 7.5 d it is d*s*(q - 7.5): mean 0.
    """
    s = rng.integers(24, 64, (n, 8), np.uint8)
    low, high = s[:, :4], s[:, 4:]
    ends = low | ((high >> 4) << 6)  # six bits of scale j, two of scale j + 4
    packed = np.concatenate([ends, ends, (high & 15) | ((high & 15) << 4)], axis=1)
    d = _scales(rng, n, std / (45.0 * 4.61))
    q = rng.integers(0, 256, (n, 128), np.uint8)
    return np.concatenate([_halves(d), _halves(7.5 * d), packed, q], axis=1)


def q6_k(rng: np.random.Generator, n: int, std: float) -> np.ndarray:
    """[n, 210]: 256 six-bit numbers minus 32 in 128 + 64 bytes, sixteen int8 scales, d."""
    q = rng.integers(0, 256, (n, 192), np.uint8)
    s = rng.integers(48, 128, (n, 16), np.int8).view(np.uint8)
    return np.concatenate([q, s, _halves(_scales(rng, n, std / (90.0 * 18.5)))], axis=1)


def f16(rng: np.random.Generator, n: int, std: float) -> np.ndarray:
    """[n, 2]."""
    return _halves(rng.normal(0, std, n))


MAKERS = {
    GGMLType.F16: f16,
    GGMLType.Q4_0: q4_0,
    GGMLType.Q8_0: q8_0,
    GGMLType.Q4_K: q4_k,
    GGMLType.Q6_K: q6_k,
}


def blocks(rng: np.random.Generator, type_: GGMLType, rows: int, width: int) -> np.ndarray:
    """Bytes [rows, bytes per row] of a random matrix whose product keeps its input's size."""
    n = rows * (width // type_.block_size)
    return MAKERS[type_](rng, n, width**-0.5).reshape(rows, type_.row_bytes(width))


def tensor_type(name: str, layer: int, n_layers: int, mix: str) -> GGMLType:
    """llama.cpp's choice for Q4_K_M: Q6_K for the output and the sensitive half of v and down."""
    if mix != "Q4_K_M":
        return GGMLType[mix]
    eighth = n_layers // 8
    more_bits = layer < eighth or layer >= 7 * n_layers // 8 or (layer - eighth) % 3 == 2
    if name in ("token_embd", "output") or (name in ("attn_v", "ffn_down") and more_bits):
        return Q6_K
    return Q4_K


def make(out: Path, vocabulary: Path, shape: argparse.Namespace) -> None:
    """Write the model."""
    rng = np.random.default_rng(shape.seed)
    head_dim = shape.embd // shape.heads
    writer = GGUFWriter(out, overwrite=True)
    writer.add("general.architecture", "llama")
    writer.add("general.name", f"Random {shape.layers}x{shape.embd}")
    writer.add("general.file_type", FILE_TYPES[shape.format])
    writer.add("general.quantization_version", 2)
    writer.add("llama.context_length", shape.context)
    writer.add("llama.embedding_length", shape.embd)
    writer.add("llama.block_count", shape.layers)
    writer.add("llama.feed_forward_length", shape.ff)
    writer.add("llama.attention.head_count", shape.heads)
    writer.add("llama.attention.head_count_kv", shape.kv_heads)
    writer.add("llama.attention.layer_norm_rms_epsilon", np.float32(1e-5))
    writer.add("llama.rope.dimension_count", head_dim)
    writer.add("llama.rope.freq_base", np.float32(100000.0))
    with GGUFFile.open(vocabulary) as source:
        n_vocab = len(source.metadata["tokenizer.ggml.tokens"])
        for key in source.metadata:
            if key == "tokenizer.ggml.pre" and shape.pre:
                writer.add(key, shape.pre)
            elif key.startswith("tokenizer."):
                writer.add_raw(key, *source.raw_metadata(key))
    writer.add("llama.vocab_size", n_vocab)

    def matrix(name: str, rows: int, width: int, layer: int = -1) -> None:
        type_ = tensor_type(name, layer, shape.layers, shape.format)
        full = f"{name}.weight" if layer < 0 else f"blk.{layer}.{name}.weight"
        # Drawn when written, so that one matrix is in memory at a time.
        make_blocks = partial(blocks, rng, type_, rows, width)
        writer.add_tensor(full, lambda: (make_blocks(),), type_, shape=(rows, width))

    def norm(name: str, layer: int = -1) -> None:
        full = f"{name}.weight" if layer < 0 else f"blk.{layer}.{name}.weight"
        writer.add_tensor(full, rng.uniform(0.8, 1.2, shape.embd).astype(np.float32), F32)

    matrix("token_embd", n_vocab, shape.embd)
    if shape.untied:
        matrix("output", n_vocab, shape.embd)
    norm("output_norm")
    for i in range(shape.layers):
        norm("attn_norm", i)
        matrix("attn_q", shape.heads * head_dim, shape.embd, i)
        matrix("attn_k", shape.kv_heads * head_dim, shape.embd, i)
        matrix("attn_v", shape.kv_heads * head_dim, shape.embd, i)
        matrix("attn_output", shape.embd, shape.heads * head_dim, i)
        norm("ffn_norm", i)
        matrix("ffn_gate", shape.ff, shape.embd, i)
        matrix("ffn_up", shape.ff, shape.embd, i)
        matrix("ffn_down", shape.embd, shape.ff, i)
    writer.write()


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    made.add_argument("out", type=Path)
    made.add_argument("--vocab", type=Path, required=True, help="a GGUF file with a tokenizer")
    made.add_argument("--format", choices=sorted(FILE_TYPES), default="Q4_K_M")
    made.add_argument("--layers", type=int, default=16)
    made.add_argument("--embd", type=int, default=2048)
    made.add_argument("--heads", type=int, default=32)
    made.add_argument("--kv-heads", type=int, default=8)
    made.add_argument("--ff", type=int, default=8192)
    made.add_argument("--context", type=int, default=8192)
    made.add_argument("--pre", help="another pre-tokenizer's name, for programs that know few")
    made.add_argument("--untied", action="store_true", help="an output matrix of its own")
    made.add_argument("--seed", type=int, default=1)
    return made


def main(arguments: list[str]) -> int:
    """Entry point."""
    shape = parser().parse_args(arguments)
    make(shape.out, shape.vocab, shape)
    print(f"{shape.out}: {shape.out.stat().st_size / 1e6:.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
