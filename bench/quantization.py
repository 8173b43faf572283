"""What quantization costs, measured on a model's own weights: rows and pictures for docs/.

    python bench/quantization.py MODEL                          errors of every format
    python bench/quantization.py MODEL --calibrate TEXT         and KL divergence, with importance
    python bench/quantization.py --draw                         the pictures again, from the rows

Errors are of the ffn_down matrices, whose rows 256 divides in the default model too: root mean
square of what was lost over that of the weights. "Plain" is rounding to nearest with a float32
scale (and minimum) for each group of 32, stored as float16 would be. KL divergence is measured on
the built-in text, as `insula quantize --report` does. The same model gives the same rows, but for
the speeds, which are not kept.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
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
from insula.models.quantize import quantize_file

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "quantization.json"
GROUP = 32
MIXES = ("Q2_K", "Q3_K_M", "IQ4_XS", "Q4_0", "Q4_K_M", "Q5_K_M", "Q6_K")


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
    """Relative errors of every format and of plain rounding, and one lopsided group."""
    power, squares = 0.0, dict[str, float]()
    lopsided: tuple[float, np.ndarray] = (0.0, np.zeros(GROUP))
    with GGUFFile.open(model) as file:
        names = [n for n in file.tensors if re.fullmatch(r"blk\.\d+\.ffn_down\.weight", n)]
        for name in names:
            x_OI = file.dequantize(name)
            power += float(np.square(x_OI, dtype=np.float64).sum())
            x_GN = x_OI.reshape(-1, GROUP)
            if name == names[0]:
                spread = x_GN.max(axis=1) - x_GN.min(axis=1)
                middle = np.abs(x_GN.max(axis=1) + x_GN.min(axis=1)) / spread
                at = int(np.where(np.isfinite(middle), middle, 0).argmax())
                lopsided = (float(middle[at]), x_GN[at])
            for kind in QUANTIZABLE:
                if kind.is_quantized:
                    back = _native.dequantize(
                        int(kind), _native.quantize(int(kind), x_OI), x_OI.size
                    )
                    add(squares, kind.name, back.reshape(x_OI.shape) - x_OI)
            for bits in range(2, 9):
                for symmetric in (True, False):
                    key = f"{'symmetric' if symmetric else 'asymmetric'} {bits}"
                    add(squares, key, plain(x_GN, bits, symmetric=symmetric) - x_GN)
    relative = {key: (value / power) ** 0.5 for key, value in squares.items()}
    kinds = [GGMLType[key] for key in relative if key in GGMLType.__members__]
    return {
        "formats": [
            {
                "name": kind.name,
                "bits": 8 * kind.block_bytes / kind.block_size,
                "error": round(relative[kind.name], 6),
            }
            for kind in sorted(kinds, key=lambda k: (k.block_bytes / k.block_size, k))
        ],
        "plain": {
            name: [[bits, round(relative[f"{name} {bits}"], 6)] for bits in range(2, 9)]
            for name in ("symmetric", "asymmetric")
        },
        "group": [round(float(v), 6) for v in lopsided[1]],
    }


def add(squares: dict[str, float], key: str, off: np.ndarray) -> None:
    squares[key] = squares.get(key, 0.0) + float(np.square(off, dtype=np.float64).sum())


def divergences(model: Path, text: Path) -> list[dict[str, Any]]:
    """KL divergence of each mix, with importance from the text and without."""
    importance = measure_importance(model, text.read_text(encoding="utf-8")).weights()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.gguf"
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
