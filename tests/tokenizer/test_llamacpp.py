"""Real vocabularies against llama.cpp itself, on text that its own tests do not have (slow).

The xllamacpp wheel loads a model, not a vocabulary alone: so each vocabulary gets a llama of a
few zeros. Where the two differ on purpose, the test says so:
- a control token is never made out of plain text by merging (llama.cpp's SentencePiece can);
- a normal token </s> (Qwen2 has one, for HTML) is text; llama.cpp makes every </s> special;
- a character for which there is no token is an error (llama.cpp drops it).
"""

from __future__ import annotations

import json
import random
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from insula.errors import TokenizerError
from insula.formats.gguf_writer import GGUFWriter
from insula.tokenizer import Tokenizer
from tokenizer import small

pytestmark = pytest.mark.slow

SHAPES = {
    "token_embd.weight": None,
    "output_norm.weight": (32,),
    "blk.0.attn_norm.weight": (32,),
    "blk.0.attn_q.weight": (32, 32),
    "blk.0.attn_k.weight": (32, 32),
    "blk.0.attn_v.weight": (32, 32),
    "blk.0.attn_output.weight": (32, 32),
    "blk.0.ffn_norm.weight": (32,),
    "blk.0.ffn_gate.weight": (32, 32),
    "blk.0.ffn_up.weight": (32, 32),
    "blk.0.ffn_down.weight": (32, 32),
}
SETTINGS = {
    "block_count": 1,
    "context_length": 64,
    "embedding_length": 32,
    "feed_forward_length": 32,
    "attention.head_count": 1,
    "rope.dimension_count": 32,
}


def with_zeros(path: Path, metadata: dict[str, Any]) -> Path:
    """A model file of this vocabulary."""
    tokens = metadata["tokenizer.ggml.tokens"]
    writer = GGUFWriter(path)
    writer.add("general.architecture", "llama")
    writer.add("general.name", str(metadata.get("general.name", "")))
    for key, value in SETTINGS.items():
        writer.add(f"llama.{key}", value)
    writer.add("llama.attention.layer_norm_rms_epsilon", 1e-5)
    for key, value in metadata.items():
        if key.startswith("tokenizer.ggml."):
            writer.add(key, value)
    for name, shape in SHAPES.items():
        writer.add_tensor(name, np.zeros(shape or (len(tokens), 32), np.float32))
    writer.write()
    return path


class LlamaCpp:
    """The tokenizer of llama.cpp's server."""

    def __init__(self, model: Path) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(model)
        params.n_ctx = 64
        params.n_parallel = 1
        params.n_gpu_layers = 0
        params.warmup = False
        params.verbosity = 0
        params.cpuparams.n_threads = 1
        self._server = xllamacpp.Server(params)

    def _post(self, route: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            self._server.listening_address + route,
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        body = {"content": text, "add_special": add_special, "parse_special": parse_special}
        found: list[int] = self._post("/tokenize", body)["tokens"]
        return found

    def decode(self, ids: list[int]) -> str:
        """Pieces in a row, special tokens by their texts, the first space kept."""
        found: str = self._post("/detokenize", {"tokens": ids})["content"]
        return found


SPECIAL = "<s> </s> <unk> <|im_start|> <|im_end|> <|eot_id|> <|user|> <|end|> <bos> <turn|>".split()


def texts(shared: Path, name: str) -> Iterator[str]:
    """From the books, and mixtures of what is hard."""
    rng = random.Random(name)
    books = ("el_quijote.txt", "el_quijote_primera_parte.txt", "tinyshakespeare.txt")
    book = "".join((shared / "data/texts" / file).read_text() for file in books)
    for _ in range(400):
        start = rng.randrange(len(book))
        yield book[start : start + rng.randrange(1, 400)]
        yield small.random_text(rng, rng.choice((3, 20, 80))).replace("\0", "")
        yield "".join(rng.choice([*SPECIAL, " ", "  ", "\n", "a b", "¿Qué?"]) for _ in range(6))


@pytest.mark.parametrize(
    "name", ["falcon", "gemma-4", "gpt-2", "llama-bpe", "llama-spm", "phi-3", "qwen2"]
)
def test_the_same_ids_and_text_as_llama_cpp(
    name: str, shared: Path, vocabulary: Any, tmp_path: Path
) -> None:
    pytest.importorskip("xllamacpp")
    tokenizer: Tokenizer
    metadata, tokenizer = vocabulary(name)
    oracle = LlamaCpp(with_zeros(tmp_path / "model.gguf", metadata))
    rng = random.Random(1)
    compared = 0
    for text in texts(shared, name):
        options = {"add_special": rng.random() < 0.5, "parse_special": rng.random() < 0.5}
        if tokenizer.model == "spm":
            options["parse_special"] = True
        if name == "qwen2":
            text = text.replace("</s>", "")
        try:
            ids = tokenizer.encode(text, **options)
        except TokenizerError:
            continue
        assert oracle.encode(text, **options) == ids, (text, options)
        if tokenizer.model != "spm" or not ids or tokenizer.is_special(ids[0]):
            assert oracle.decode(ids) == tokenizer.decode(ids, continues=True), text
        compared += 1
    assert compared > 900
