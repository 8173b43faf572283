"""GGUF files byte by byte, independent of the writer, so that they can lie."""

from __future__ import annotations

import struct
from collections.abc import Sequence

U32, I32, F32, BOOL, STRING, ARRAY, U64 = 4, 5, 6, 7, 8, 9, 10


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str | bytes, kind: int, payload: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + payload


def u32(key: str, value: int) -> bytes:
    return entry(key, U32, struct.pack("<I", value))


def array(kind: int, count: int, body: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + body


def tensor(
    name: str | bytes,
    dims: Sequence[int],
    kind: int = 0,
    offset: int = 0,
    n_dims: int | None = None,
) -> bytes:
    """dims in GGUF's order, fastest first."""
    n = len(dims) if n_dims is None else n_dims
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", n, *dims, kind, offset)


def file(
    entries: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    n_entries: int | None = None,
    n_tensors: int | None = None,
    alignment: int = 32,
    magic: bytes = b"GGUF",
) -> bytes:
    head = magic + struct.pack(
        "<IQQ",
        version,
        len(tensors) if n_tensors is None else n_tensors,
        len(entries) if n_entries is None else n_entries,
    )
    head += b"".join(entries) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + data


def small() -> bytes:
    """A little of everything, 6 tensors, every byte of it meaningful or padding."""
    entries = [
        entry("general.architecture", STRING, string("llama")),
        u32("general.alignment", 32),
        entry("a.bool", BOOL, b"\x01"),
        entry("a.f32", F32, struct.pack("<f", 1.5)),
        entry("a.u64", U64, struct.pack("<Q", 1 << 40)),
        entry("tokens", ARRAY, array(STRING, 3, string("a") + string("") + string("ñ"))),
        entry("scores", ARRAY, array(F32, 3, struct.pack("<3f", 0, 1, 2))),
        entry("flags", ARRAY, array(BOOL, 2, b"\x00\x01")),
        entry(
            "nested", ARRAY, array(ARRAY, 2, array(I32, 1, struct.pack("<i", -7)) + array(I32, 0))
        ),
    ]
    tensors = [
        tensor("t.f32", [4, 2], 0, 0),
        tensor("t.f16", [4], 1, 32),
        tensor("t.q8_0", [32, 2], 8, 64),
        tensor("t.q4_0", [32], 2, 160),
        tensor("t.i32", [2], 26, 192),
        tensor("t.iq2", [256], 16, 224),
    ]
    return file(entries, tensors, bytes(range(1, 225)) + bytes(66))
