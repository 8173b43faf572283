"""ggml's own quantizers, out of the xllamacpp wheel, as an oracle."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from insula.formats.ggml_types import GGMLType


class Ggml:
    """The few functions that are needed, by their C names."""

    def __init__(self) -> None:
        package = pytest.importorskip("xllamacpp", reason="the llamacpp extra is the oracle here")
        library = next(Path(package.__file__).parent.glob("*.so"), None)
        if library is None:
            pytest.skip("the xllamacpp wheel of this platform has no .so to ask")
        self._library = ctypes.CDLL(str(library))
        if not hasattr(self._library, "ggml_quantize_chunk"):
            pytest.skip("this xllamacpp does not export ggml's quantizers")
        self._library.ggml_quantize_chunk.restype = ctypes.c_size_t

    def quantize(
        self, kind: GGMLType, x: NDArray[np.float32], w: NDArray[np.float32] | None = None
    ) -> NDArray[np.uint8]:
        rows, cols = x.shape
        out = np.empty(rows * kind.row_bytes(cols), np.uint8)
        self._library.ggml_quantize_chunk(
            ctypes.c_int(kind),
            x.ctypes.data_as(ctypes.c_void_p),
            out.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_int64(0),
            ctypes.c_int64(rows),
            ctypes.c_int64(cols),
            None if w is None else w.ctypes.data_as(ctypes.c_void_p),
        )
        return out

    def dequantize(self, kind: GGMLType, raw: NDArray[np.uint8], n: int) -> NDArray[np.float32]:
        name = kind.name[:-1].lower() + "K" if kind.name.endswith("_K") else kind.name.lower()
        out = np.empty(n, np.float32)
        getattr(self._library, f"dequantize_row_{name}")(
            raw.ctypes.data_as(ctypes.c_void_p),
            out.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_int64(n),
        )
        return out
