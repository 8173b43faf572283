"""How fast texts become vectors, against sentence-transformers on the same model and texts.

    python bench/embeddings.py --folder DIR --questions DIR [--model FILE ...] [--rounds 3]

folder: all-MiniLM-L6-v2 in safetensors form, which sentence-transformers (to be installed: it is no
dependency) reads. model: GGUF files of it, as `insula pull all-minilm:l6-v2` leaves one. questions:
where XQuAD's xquad.en.json and xquad.es.json lie; their paragraphs and then questions are the
texts. Each round all engines take all texts, in turns, one process and model each, loaded before;
both cut texts at what the model declares. One JSON line goes to bench/results/embeddings.jsonl: the
middle of the rounds, the spread, and how far cosines are from 1.
"""

from __future__ import annotations

import argparse
import datetime as dt
import hashlib
import json
import os
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from machine import machine

RESULTS = Path(__file__).resolve().parent / "results" / "embeddings.jsonl"


def texts(folder: Path, count: int) -> list[str]:
    """Paragraphs in both languages, then questions."""
    paragraphs: list[str] = []
    questions: list[str] = []
    for language in ("en", "es"):
        data = json.loads((folder / f"xquad.{language}.json").read_text(encoding="utf-8"))["data"]
        for article in data:
            for paragraph in article["paragraphs"]:
                paragraphs.append(paragraph["context"])
                questions += [each["question"] for each in paragraph["qas"]]
    return (paragraphs + questions)[:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--model", type=Path, nargs="+", default=[])
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--note", default="", help="what else went on, for the row")
    asked = parser.parse_args()

    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers import __version__ as theirs

    from insula import LLM

    listed = texts(asked.questions, asked.texts)
    models = {path.name: LLM(path) for path in asked.model}
    threads = next(iter(models.values())).model_info.threads if models else os.cpu_count() or 1
    torch.set_num_threads(threads)
    peer = SentenceTransformer(str(asked.folder), device="cpu")
    peer.encode(listed[:32])

    took: dict[str, list[float]] = {}
    vectors: dict[str, Any] = {}
    tokens = 0
    for _ in range(asked.rounds):
        began = time.perf_counter()
        vectors["sentence-transformers"] = peer.encode(listed, normalize_embeddings=True)
        took.setdefault("sentence-transformers", []).append(time.perf_counter() - began)
        for name, llm in models.items():
            began = time.perf_counter()
            found = llm.embed(listed, truncate=True)
            took.setdefault(name, []).append(time.perf_counter() - began)
            vectors[name], tokens = found.vectors, found.report.tokens
    reference = vectors["sentence-transformers"]
    row: dict[str, Any] = {
        "when": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "note": asked.note,
        "threads": threads,
        "isa": next((llm.model_info.isa for llm in models.values()), None),
        "texts": len(listed),
        "tokens": tokens,
        "rounds": asked.rounds,
        "versions": {"sentence-transformers": theirs, "torch": torch.__version__},
        "engines": {},
    }
    base = median(took["sentence-transformers"])
    for name, seconds in took.items():
        off = 1 - np.einsum("nd,nd->n", reference, vectors[name])
        row["engines"][name] = {
            "seconds": round(median(seconds), 2),
            "low": round(min(seconds), 2),
            "high": round(max(seconds), 2),
            "times_faster": round(base / median(seconds), 2),
            "cosine_off_max": float(f"{max(0.0, float(off.max())):.2g}"),
        }
    for path in asked.model:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        row["engines"][path.name]["sha256"] = digest
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row, indent=2))


if __name__ == "__main__":
    main()
