"""What quantization costs, measured on a model's own weights: rows and pictures for docs/.

    python bench/quantization.py MODEL                          errors of every format
    python bench/quantization.py MODEL --calibrate TEXT         and KL divergence, with importance
    python bench/quantization.py --draw                         the pictures again, from the rows

Errors are of the embedding, the only matrix of the default model that its publishers stored in more
than four bits (Q8_0): root mean square of what was lost over that of the weights. "Plain" is
rounding to nearest with a scale (and a minimum) for each group of 32.

KL divergence is measured on the built-in text, as `insula quantize --report` does. Its source is
not the published file either, whose matrices are Q4_1: a format with a scale and a minimum finds
those sixteen levels again and loses nothing, which says nothing about other models. `unrounded`
undoes the rounding at random: each weight becomes some value that would have been rounded to the
same level. The same model gives the same rows.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from quantization_plots import draw

from insula import _native
from insula.engine.importance import measure_importance
from insula.engine.quality import builtin_text, compare
from insula.formats.ggml_types import QUANTIZABLE, GGMLType
from insula.formats.gguf import GGUFFile
from insula.formats.gguf_writer import GGUFWriter
from insula.models.quantize import quantize_file

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "quantization.json"
GROUP = 32
BITS = range(2, 8)
MIXES = ("Q2_K", "Q3_K_M", "IQ4_XS", "Q4_0", "Q4_K_M", "Q5_K_M")


def plain(x_GN: np.ndarray, bits: int, *, symmetric: bool) -> np.ndarray:
    """Groups rounded to 2^bits levels: s q with q from -2^(b-1), or s q + m with q from 0."""
    if symmetric:
        half = 1 << (bits - 1)
        largest = np.take_along_axis(x_GN, np.abs(x_GN).argmax(axis=1)[:, None], axis=1)
        s = largest / -half
        q = np.clip(np.rint(x_GN / np.where(s == 0, 1, s)), -half, half - 1)
        return s * q
    low, high = x_GN.min(axis=1, keepdims=True), x_GN.max(axis=1, keepdims=True)
    s = (high - low) / ((1 << bits) - 1)
    return s * np.rint((x_GN - low) / np.where(s == 0, 1, s)) + low


def errors(model: Path) -> dict[str, Any]:
    """Relative errors of every format and of plain rounding, and the most lopsided group."""
    with GGUFFile.open(model) as file:
        stored = file.info("token_embd.weight").type.name
        x_GN = file.dequantize("token_embd.weight").reshape(-1, GROUP)
    power = float(np.square(x_GN, dtype=np.float64).sum())

    def relative(y: np.ndarray) -> float:
        off = y.reshape(x_GN.shape) - x_GN
        return round(float((np.square(off, dtype=np.float64).sum() / power) ** 0.5), 6)

    def stored_as(kind: GGMLType) -> np.ndarray:
        raw = _native.quantize(int(kind), x_GN.reshape(-1, 256))
        return _native.dequantize(int(kind), raw, x_GN.size)

    kinds = [kind for kind in QUANTIZABLE if kind.is_quantized and kind.name != stored]
    first_GN = x_GN[:: len(x_GN) // 5000]  # a few thousand from everywhere
    middle = np.abs(first_GN.max(axis=1) + first_GN.min(axis=1))
    leaning = middle / (first_GN.max(axis=1) - first_GN.min(axis=1))
    return {
        "stored_as": stored,
        "formats": [
            {
                "name": kind.name,
                "bits": 8 * kind.block_bytes / kind.block_size,
                "error": relative(stored_as(kind)),
            }
            for kind in sorted(kinds, key=lambda k: (k.block_bytes / k.block_size, k))
        ],
        "plain": {
            name: [[bits, relative(plain(x_GN, bits, symmetric=symmetric))] for bits in BITS]
            for name, symmetric in (("symmetric", True), ("asymmetric", False))
        },
        "group": [round(float(v), 6) for v in first_GN[int(leaning.argmax())]],
    }


def unrounded(model: Path, out: Path, *, seed: int = 0) -> Path:
    """`model` in F16 with each weight of Q4_1 and Q8_0 moved within its own step, at random."""
    rng = np.random.default_rng(seed)
    with GGUFFile.open(model) as file:
        writer = GGUFWriter(out)
        for key in file.metadata:
            writer.add_raw(key, *file.raw_metadata(key))
        for info in file.tensors.values():
            values = file.dequantize(info.name)
            if info.type.is_quantized:
                assert info.type in (GGMLType.Q4_1, GGMLType.Q8_0)
                raw = file.data(info.name).reshape(-1, info.type.block_bytes)
                step = np.ascontiguousarray(raw[:, :2]).view("<f2").astype(np.float32)
                noise = rng.random((len(raw), GROUP), dtype=np.float32) - np.float32(0.5)
                values = values + (noise * step).reshape(values.shape)
                writer.add_tensor(info.name, values.astype(np.float16))
            else:
                writer.add_tensor(info.name, values)
        writer.write()
    return out


def divergences(model: Path, text: Path) -> list[dict[str, Any]]:
    """KL divergence of each mix, with importance from the text and without."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.gguf"
        model = unrounded(model, Path(folder) / "source.gguf")
        importance = measure_importance(model, text.read_text(encoding="utf-8")).weights()
        for mix in MIXES:
            row: dict[str, Any] = {"format": mix}
            for name, weights in (("plain", None), ("importance", importance)):
                made = quantize_file(model, out, mix, importance=weights, overwrite=True)
                found = compare(model, out, builtin_text())
                row[name] = {
                    "bits": round(made.bits_per_weight, 3),
                    "kl": round(found.kl_mean, 5),
                    "same_top": round(found.same_top, 4),
                    "perplexity": round(found.perplexity, 3),
                }
                row["source_perplexity"] = round(found.perplexity_source, 3)
                row["tokens"] = found.tokens
            print(json.dumps(row), flush=True)
            rows.append(row)
    return rows


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--calibrate", type=Path, help="a text for the importance matrix")
    parser.add_argument("--draw", action="store_true", help="draw what was measured before")
    options = parser.parse_args(arguments)
    if options.model is None and not options.draw:
        parser.error("a MODEL, or --draw")
    found = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    if options.model is not None:
        with options.model.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        found |= {"model": options.model.name, "sha256": sha256, **errors(options.model)}
        if options.calibrate is not None:
            found["divergence"] = divergences(options.model, options.calibrate)
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for name, svg in draw(found).items():
        (ROOT / "docs" / name).write_text(svg, encoding="utf-8")
        print(f"docs/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
