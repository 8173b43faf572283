"""Which model this is, for what is kept of its work: cheap enough for every start.

The program of ops is all that an engine knows of a model beside its tensors, so it stands for the
metadata: another RoPE base is another op. Of each tensor that it reads, type, shape, place and
three blocks of 4 KiB (beginning, middle, end) count: training, merging and quantizing change every
block of a tensor, or none. What changes a file here and there (a repaired download) shows in its
size or time of modification. So a copy with a new time is another model: that costs computing
once, the reverse would cost wrong answers.
"""

from __future__ import annotations

from dataclasses import fields
from hashlib import blake2b

import numpy as np

from insula.formats.gguf import GGUFFile
from insula.models.load import weight_names
from insula.ops.graph import Graph

_BLOCK = 4096


def fingerprint(graph: Graph, gguf: GGUFFile) -> bytes:
    """32 bytes. Raises FormatError if the file was cut short while it was read."""
    digest = blake2b(digest_size=32)

    def add(*values: object) -> None:
        for value in values:
            raw = value if isinstance(value, bytes) else repr(value).encode()
            digest.update(len(raw).to_bytes(8, "little") + raw)

    add(gguf.size, gguf.path.stat().st_mtime_ns, graph.buffers, graph.slots)
    for op in graph.ops:
        add(type(op).__name__)
        for field in fields(op):
            value = getattr(op, field.name)
            add(field.name, value.tobytes() if isinstance(value, np.ndarray) else value)
    for name in weight_names(graph):
        info, data = gguf.info(name), gguf.data(name)
        add(name, int(info.type), info.shape, info.offset)
        for start in (0, info.nbytes // 2, max(0, info.nbytes - _BLOCK)):
            add(data[start : start + _BLOCK].tobytes())
    gguf.check()
    return digest.digest()
