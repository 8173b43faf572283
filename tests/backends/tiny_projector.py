"""Random projectors for the tiny chat model: for images CLIP with LLaVA's two-layer projector, for
sound Whisper's encoder with Ultravox's.

Written with the gguf package under the names that llama.cpp's tools/mtmd reads (clip-impl.h).
Seeded. What the model makes of an image or a sound means nothing, but it depends on it.
"""

from __future__ import annotations

import base64
import struct
import zlib
from pathlib import Path

import numpy as np

WIDTH, HIDDEN, LAYERS, HEADS, PATCH, SIDE = 32, 64, 3, 2, 14, 28


class _Weights:
    """A writer of random tensors."""

    def __init__(self, path: Path, seed: int) -> None:
        import gguf

        self.writer = gguf.GGUFWriter(path, "clip")
        self.writer.add_bool("clip.use_gelu", True)
        self._rng = np.random.default_rng(seed)

    def tensor(self, name: str, *shape: int, around: float = 0.0, half: bool = False) -> None:
        values = self._rng.standard_normal(shape) * 0.3 + around
        self.writer.add_tensor(name, values.astype(np.float16 if half else np.float32))

    def norm(self, name: str) -> None:
        self.tensor(f"{name}.weight", WIDTH, around=1.0)
        self.tensor(f"{name}.bias", WIDTH)

    def linear(self, name: str, out: int, into: int) -> None:
        self.tensor(f"{name}.weight", out, into)
        self.tensor(f"{name}.bias", out)

    def encoder(self, side: str, n_embd: int, *, key_bias: bool) -> None:
        """The blocks of one encoder, "vision" or "audio"."""
        for key, value in {
            "embedding_length": WIDTH,
            "feed_forward_length": HIDDEN,
            "block_count": LAYERS,
            "attention.head_count": HEADS,
            "projection_dim": n_embd,
        }.items():
            self.writer.add_uint32(f"clip.{side}.{key}", value)
        self.writer.add_float32(f"clip.{side}.attention.layer_norm_epsilon", 1e-5)
        for layer in range(LAYERS):
            block = f"{side[0]}.blk.{layer}"
            self.norm(f"{block}.ln1")
            self.norm(f"{block}.ln2")
            for part in ("q", "v", "out"):
                self.linear(f"{block}.attn_{part}", WIDTH, WIDTH)
            self.tensor(f"{block}.attn_k.weight", WIDTH, WIDTH)
            if key_bias:
                self.tensor(f"{block}.attn_k.bias", WIDTH)
            self.linear(f"{block}.ffn_up", HIDDEN, WIDTH)
            self.linear(f"{block}.ffn_down", WIDTH, HIDDEN)

    def write(self) -> None:
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()


def write_projector(path: Path, *, n_embd: int = 64, seed: int = 3) -> Path:
    """For images. n_embd: the width of the language model."""
    made = _Weights(path, seed)
    made.writer.add_bool("clip.has_vision_encoder", True)
    made.writer.add_string("clip.projector_type", "mlp")
    made.writer.add_uint32("clip.vision.image_size", SIDE)
    made.writer.add_uint32("clip.vision.patch_size", PATCH)
    made.writer.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
    made.writer.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])
    made.encoder("vision", n_embd, key_bias=True)
    made.tensor("v.class_embd", WIDTH)
    made.tensor("v.patch_embd.weight", WIDTH, 3, PATCH, PATCH)
    made.tensor("v.position_embd.weight", (SIDE // PATCH) ** 2 + 1, WIDTH)
    made.norm("v.pre_ln")
    made.linear("mm.0", n_embd, WIDTH)
    made.linear("mm.2", n_embd, n_embd)
    made.write()
    return path


def write_listener(path: Path, *, n_embd: int = 64, seed: int = 4) -> Path:
    """For sound: 30 seconds at most become 75 tokens."""
    mels, frames, stack, middle = 80, 1500, 20, 48
    made = _Weights(path, seed)
    made.writer.add_bool("clip.has_audio_encoder", True)
    made.writer.add_string("clip.projector_type", "ultravox")
    made.writer.add_uint32("clip.audio.num_mel_bins", mels)
    made.writer.add_uint32("clip.audio.projector.stack_factor", stack)
    made.encoder("audio", n_embd, key_bias=False)
    for number, into in ((1, mels), (2, WIDTH)):
        made.tensor(f"a.conv1d.{number}.weight", WIDTH, into, 3, half=True)
        made.tensor(f"a.conv1d.{number}.bias", WIDTH, 1)
    made.tensor("a.position_embd.weight", frames, WIDTH)
    made.norm("a.post_ln")
    made.tensor("mm.a.mlp.1.weight", 2 * middle, WIDTH * stack)
    made.tensor("mm.a.mlp.2.weight", n_embd, middle)
    made.tensor("mm.a.norm_pre.weight", WIDTH * stack, around=1.0)
    made.tensor("mm.a.norm_mid.weight", middle, around=1.0)
    made.write()
    return path


def wav(hertz: float, seconds: float = 1.0, rate: int = 16000) -> bytes:
    """A WAV file of one tone."""
    t = np.arange(int(rate * seconds)) / rate
    samples = (12000 * np.sin(2 * np.pi * hertz * t)).astype("<i2").tobytes()
    form = struct.pack("<IHHIIHH", 16, 1, 1, rate, 2 * rate, 2, 16)
    rest = b"WAVEfmt " + form + b"data" + struct.pack("<I", len(samples)) + samples
    return b"RIFF" + struct.pack("<I", len(rest)) + rest


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
