"""A random image projector for the tiny chat model: CLIP with LLaVA's two-layer projector.

Written with the gguf package under the names that llama.cpp's tools/mtmd reads (clip-impl.h).
Seeded. What the model makes of an image means nothing, but it depends on the image.
"""

from __future__ import annotations

import base64
import struct
import zlib
from pathlib import Path

import numpy as np

WIDTH, HIDDEN, LAYERS, HEADS, PATCH, SIDE = 32, 64, 3, 2, 14, 28


def write_projector(path: Path, *, n_embd: int = 64, seed: int = 3) -> Path:
    """n_embd: the width of the language model."""
    import gguf

    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "mlp")
    writer.add_bool("clip.use_gelu", True)
    for key, value in {
        "image_size": SIDE,
        "patch_size": PATCH,
        "embedding_length": WIDTH,
        "feed_forward_length": HIDDEN,
        "block_count": LAYERS,
        "attention.head_count": HEADS,
        "projection_dim": n_embd,
    }.items():
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    writer.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
    writer.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])

    def tensor(name: str, *shape: int, around: float = 0.0) -> None:
        values = rng.standard_normal(shape) * 0.3 + around
        writer.add_tensor(name, values.astype(np.float32))

    def norm(name: str) -> None:
        tensor(f"{name}.weight", WIDTH, around=1.0)
        tensor(f"{name}.bias", WIDTH)

    def linear(name: str, out: int, into: int) -> None:
        tensor(f"{name}.weight", out, into)
        tensor(f"{name}.bias", out)

    tensor("v.class_embd", WIDTH)
    tensor("v.patch_embd.weight", WIDTH, 3, PATCH, PATCH)
    tensor("v.position_embd.weight", (SIDE // PATCH) ** 2 + 1, WIDTH)
    norm("v.pre_ln")
    for layer in range(LAYERS):
        block = f"v.blk.{layer}"
        norm(f"{block}.ln1")
        norm(f"{block}.ln2")
        for part in ("q", "k", "v", "out"):
            linear(f"{block}.attn_{part}", WIDTH, WIDTH)
        linear(f"{block}.ffn_up", HIDDEN, WIDTH)
        linear(f"{block}.ffn_down", WIDTH, HIDDEN)
    linear("mm.0", n_embd, WIDTH)
    linear("mm.2", n_embd, n_embd)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def png(red: int, green: int, blue: int, side: int = SIDE) -> bytes:
    """A PNG of one colour (RFC 2083)."""
    rows = (b"\0" + bytes((red, green, blue)) * side) * side

    def part(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + part(b"IHDR", head)
        + part(b"IDAT", zlib.compress(rows))
        + part(b"IEND", b"")
    )


def data_url(image: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(image).decode()
