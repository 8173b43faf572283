"""The files to measure on, and what a step of each must read and multiply."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from insula.formats.gguf import GGUFFile
from insula.hub.catalog import DEFAULT_MODEL
from insula.hub.resolve import resolve

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "bench"
RANDOM = {"1b-q4_k_m": "Q4_K_M", "1b-q4_0": "Q4_0", "1b-q8_0": "Q8_0"}
#: What the random models say that they were trained for.
CONTEXT = 32768
NORMAL = 1  # a vocabulary's ordinary tokens, by GGUF's numbers


@dataclass(frozen=True, kw_only=True)
class Model:
    """A file to measure on.

    words: text by id of the tokens that prompts are made of. streamed: bytes of weights that each
    step reads. block_weights: numbers in the layers' matrices, head_weights: in the last one.
    kv_bytes: keys and values of one token as 16-bit floats.
    """

    label: str
    path: Path
    sha256: str
    context: int
    words: dict[int, str]
    file_bytes: int
    streamed: int
    block_weights: int
    head_weights: int
    kv_bytes: int

    @property
    def weights(self) -> int:
        return self.block_weights + self.head_weights


def find_model(name: str, say: Callable[[str], None]) -> Model:
    """`default`, one of RANDOM (made if need be), or a path or name that Insula knows."""
    if name in RANDOM:
        path = FOLDER / f"random-{name}-{CONTEXT}.gguf"
        if not path.exists():
            say(f"making {path.name} (once)")
            make_random_model(path, RANDOM[name])
    else:
        path = resolve(DEFAULT_MODEL if name == "default" else name, allow_download=True)
    label = DEFAULT_MODEL if name == "default" else name if name in RANDOM else path.stem
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    with GGUFFile.open(path) as gguf:
        tensors = gguf.tensors
        sizes = {t.name: t.nbytes for t in tensors.values()}
        head = "output.weight" if "output.weight" in sizes else "token_embd.weight"
        streamed = sum(sizes.values())
        if head == "output.weight":  # else the embedding is the last layer too, and read whole
            streamed -= sizes["token_embd.weight"]
        matrices = {t.name: t.shape[0] * t.shape[1] for t in tensors.values() if len(t.shape) == 2}
        return Model(
            label=label,
            path=path,
            sha256=sha256,
            context=int(_fact(gguf.metadata, "context_length")),
            words=plain_words(gguf.metadata),
            file_bytes=path.stat().st_size,
            streamed=streamed,
            block_weights=sum(n for name, n in matrices.items() if name.startswith("blk.")),
            head_weights=matrices[head],
            kv_bytes=_kv_bytes(gguf.metadata),
        )


def plain_words(metadata: Any) -> dict[int, str]:
    """Tokens that are a space and a word, so that joined texts become the same tokens again.

    A vocabulary with few of them gives all of its ordinary tokens.
    """
    tokens = metadata["tokenizer.ggml.tokens"]
    word = re.compile("[\u0120\u2581]([a-z]{2,})")  # the spaces of BPE and of SentencePiece
    words = {i: f" {m[1]}" for i, t in enumerate(tokens) if (m := word.fullmatch(t))}
    if len(words) >= 1000:
        return words
    kinds = metadata.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    return {i: t for i, (t, k) in enumerate(zip(tokens, kinds, strict=True)) if k == NORMAL}


def _kv_bytes(metadata: Any) -> int:
    heads = int(_fact(metadata, "attention.head_count"))
    width = int(_fact(metadata, "embedding_length")) // heads
    lengths = (_fact(metadata, f"attention.{which}_length", width) for which in ("key", "value"))
    kv_heads = int(_fact(metadata, "attention.head_count_kv", heads))
    return 2 * int(_fact(metadata, "block_count")) * kv_heads * sum(map(int, lengths))


def _fact(metadata: Any, key: str, otherwise: Any = None) -> Any:
    return metadata.get(f"{metadata['general.architecture']}.{key}", otherwise)


def make_random_model(path: Path, quantization: str) -> None:
    """1.07B parameters of the Llama shape, seeded; speed does not depend on their values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".part")
    subprocess.run(
        [
            *(sys.executable, str(ROOT / "tools" / "make_random_model.py"), str(new)),
            *("--vocab", str(resolve(DEFAULT_MODEL, allow_download=True))),
            *("--format", quantization, "--context", str(CONTEXT), "--pre", "gpt-2"),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    new.rename(path)
