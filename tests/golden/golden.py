"""Reads golden files: a tiny model as GGUF bytes, token ids, what transformers gives for them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
NAMES = sorted(path.stem for path in HERE.glob("*.npz"))


@dataclass(frozen=True, kw_only=True)
class Golden:
    """ids int32 [T]; logits float32 [T, V]; gguf: the file's bytes.

    Of an encoder logits are its last hidden states [T, D]; types int32 [T] or None; scores
    float32 [L], a head's, or None.
    """

    name: str
    gguf: bytes
    ids: np.ndarray
    logits: np.ndarray
    provenance: dict
    types: np.ndarray | None = None
    scores: np.ndarray | None = None

    def write(self, folder: Path) -> Path:
        """Put the model into a folder; returns its path."""
        path = folder / f"{self.name}.gguf"
        path.write_bytes(self.gguf)
        return path


def load(name: str) -> Golden:
    with np.load(HERE / f"{name}.npz") as arrays:
        return Golden(
            name=name,
            gguf=arrays["gguf"].tobytes(),
            ids=arrays["ids"],
            logits=arrays["logits"],
            provenance=json.loads(str(arrays["provenance"])),
            types=arrays.get("types"),
            scores=arrays.get("scores"),
        )
