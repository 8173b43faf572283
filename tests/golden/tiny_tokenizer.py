"""A byte-level BPE tokenizer of 320 tokens, small enough to ride in a golden file.

Cut as GPT-2 cuts text; special tokens <|bos|> and <|eos|>; 256 bytes; 40 merges of English.
"""

from __future__ import annotations

import json
from pathlib import Path

N_VOCAB = 320
BOS, EOS = 0, 1

#: "left right" in order of rank: a space before common letters, common pairs, then words.
MERGES = [
    *(f"Ġ {letter}" for letter in "tasowcbfmpdhl"),
    *("h e", "i n", "e r", "o n", "r e", "a t", "e n", "n d", "o r", "e s", "o u", "i s", "i t"),
    *("e d", "a n", "a r", "l l", "a l", "i c", "o m", "r o"),
    *("Ġt he", "in g", "Ġa nd", "Ġo f", "Ġt o", "Ġ in"),
]


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-in for each byte value (openai/gpt-2, src/encoder.py)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(256, 512))
    return [chr(b if b in printable else next(others)) for b in range(256)]


def tokenizer_json() -> dict:
    """The tokenizer.json of the tiny tokenizer."""
    tokens = ["<|bos|>", "<|eos|>", *byte_alphabet(), *("".join(m.split(" ")) for m in MERGES)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": tokens[i], "special": True, "normalized": False}
            | {"single_word": False, "lstrip": False, "rstrip": False}
            for i in (BOS, EOS)
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level | {"use_regex": True},
        "post_processor": None,
        "decoder": byte_level | {"use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [m.split(" ") for m in MERGES],
        },
    }


def save(folder: Path) -> None:
    """Write the files that a Hugging Face folder holds for a tokenizer."""
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json()), encoding="utf-8")
    settings = {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
