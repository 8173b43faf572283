"""Writing safetensors files.

Owns: the header and the layout, tensor after tensor without holes, as the format wants it.
Refuses: dtypes that the format does not have, and tensors that give more or fewer bytes than
their shape takes. Spec: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from insula.errors import ConfigError, FormatError, ResourceError
from insula.formats.safetensors import DTYPES

#: Tensors begin at a multiple of this.
ALIGNMENT = 8


@dataclass(frozen=True, kw_only=True)
class Outgoing:
    """A tensor to write: `load` gives its bytes, uint8[nbytes], when its turn comes."""

    dtype: str
    shape: tuple[int, ...]
    load: Callable[[], NDArray[np.uint8]]

    @property
    def nbytes(self) -> int:
        """What dtype and shape take."""
        return math.prod(self.shape) * DTYPES[self.dtype][0]


def write_safetensors(path: Path, tensors: Mapping[str, Outgoing]) -> int:
    """Write a new file and return its size. Raises ConfigError, FormatError, ResourceError."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise ConfigError(f"safetensors has no dtype {tensor.dtype!r}")
        header[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.nbytes],
        }
        at += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    try:
        with path.open("xb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name, tensor in tensors.items():
                data = tensor.load()
                if data.nbytes != tensor.nbytes:
                    raise FormatError(
                        f"tensor {name!r} takes {tensor.nbytes} bytes and {data.nbytes} came"
                    )
                file.write(np.ascontiguousarray(data).data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = f"it needs {at / 1e6:.1f} MB" if full else (error.strerror or str(error))
        raise ResourceError(f"{path} cannot be written: {reason}") from None
    return 8 + len(text) + at


def shards(sizes: Mapping[str, int], most: int) -> list[list[str]]:
    """Names in order, in files of at most `most` bytes; a larger tensor has a file of its own."""
    files: list[list[str]] = []
    room = 0
    for name, nbytes in sizes.items():
        if not files or nbytes > room:
            files.append([])
            room = most
        files[-1].append(name)
        room -= nbytes
    return files


def shard_names(n: int) -> Sequence[str]:
    """What a checkpoint's n files are called."""
    if n == 1:
        return ["model.safetensors"]
    return [f"model-{i:05d}-of-{n:05d}.safetensors" for i in range(1, n + 1)]
