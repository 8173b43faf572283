"""Vocabularies that the tests make themselves, and the definitions that they are compared with.

The reference functions say what the algorithms mean in the plainest way, in quadratic time; none
of their code is shared with the package.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
MARK = "\u2581"  # a space, in SentencePiece vocabularies
P = "tokenizer.ggml."


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-in for each byte value (openai/gpt-2, src/encoder.py)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(256, 512))
    return [chr(b if b in printable else next(others)) for b in range(256)]


def as_alphabet(text: str) -> str:
    """`text` as byte-level BPE writes it."""
    alphabet = byte_alphabet()
    return "".join(alphabet[b] for b in text.encode())


def metadata(
    model: str, tokens: Sequence[str], types: Sequence[int] | None = None, **rest: Any
) -> dict[str, Any]:
    """GGUF metadata; keyword names are keys after `tokenizer.ggml.`, with _ for a dot."""
    found: dict[str, Any] = {P + "model": model, P + "tokens": list(tokens)}
    found[P + "token_type"] = np.array(types or [NORMAL] * len(tokens), dtype=np.int32)
    for key, value in rest.items():
        found[P + key.replace("normalizer_", "normalizer.")] = value
    return found


MERGES = [
    "Ġ t",
    "h e",
    "Ġt he",
    "e r",
    "i n",
    "in g",
    "Ġ Ġ",
    "ĠĠ ĠĠ",
    "a n",
    "an d",
    "Ġ and",
    "l l",
]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def byte_level(
    *, pre: str = "gpt-2", merges: Sequence[str] = MERGES, extra: Sequence[tuple[str, int]] = ()
) -> dict[str, Any]:
    """256 bytes, the merges' tokens, three control tokens, and what is given."""
    tokens = byte_alphabet() + [merge.replace(" ", "") for merge in merges]
    types = [NORMAL] * len(tokens) + [CONTROL] * len(SPECIAL) + [kind for _, kind in extra]
    tokens += SPECIAL + [text for text, _ in extra]
    end = tokens.index(SPECIAL[0])
    return metadata(
        "gpt2", tokens, types, pre=pre, merges=list(merges), bos_token_id=end, eos_token_id=end
    )


def sentencepiece(
    pieces: Sequence[tuple[str, float]], *, extra: Sequence[tuple[str, int]] = (), **rest: Any
) -> dict[str, Any]:
    """<unk> <s> </s>, 256 bytes, `pieces` with their scores, and what is given (score -1000)."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256
    scores = [0.0] * len(tokens) + [score for _, score in pieces] + [-1000.0] * len(extra)
    tokens += [text for text, _ in pieces] + [text for text, _ in extra]
    types += [NORMAL] * len(pieces) + [kind for _, kind in extra]
    ids = {"unknown_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return metadata("llama", tokens, types, scores=np.array(scores, np.float32), **ids | rest)


WORDS = ["hello", "world", "un", "##want", "##ed", "runn", "##ing", "a", "##b", "!", ",", "中"]


def wordpiece(words: Sequence[str] = WORDS, **rest: Any) -> dict[str, Any]:
    """BERT's five special tokens and `words` as BERT writes them, in GGUF's form."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = special + [w[2:] if w.startswith("##") else MARK + w for w in words]
    ids = {"unknown_token_id": 1, "cls_token_id": 2, "seperator_token_id": 3, "padding_token_id": 0}
    return metadata("bert", tokens, [CONTROL] * 5 + [NORMAL] * len(words), **ids | rest)


def merge_by(symbols: list[str], rank: Callable[[str, str], float | None]) -> list[str]:
    """Joins the adjacent pair of the lowest rank, the leftmost of equals, until none has one."""
    while True:
        ranks = [rank(a, b) for a, b in pairwise(symbols)]
        known = [(r, i) for i, r in enumerate(ranks) if r is not None]
        if not known:
            return symbols
        _, i = min(known)
        symbols = [*symbols[:i], symbols[i] + symbols[i + 1], *symbols[i + 2 :]]


#: Characters that pre-tokenizers treat differently, by kind.
POOLS = [
    " \t\n\r\u00a0\u3000\u2028\x85\x0b",
    "abcXYZ'sStTreREveVEllLLdDmM\u017f",
    "0123456789\u00bd\u0664\u0967\u2160\u216b",
    "!?.,;:'\"/()<>$+|^~`-_[]{}=#%&*@\\",
    "éñÀŽǅʰªßΩжЯ中々〇龥あアー한글ㄱ\u093c\u0902\u0301\u0303\u0327",
    "🦙😀✅①ⓐ🅰",
    "<sentinel:12>IMGIMGABZ",
    "\u200b\u00ad\ue000\U000e0001\u0378\x00\x1c\x7f",
]


def random_text(rng: random.Random, length: int) -> str:
    """At least `length` characters: runs from the pools, and any code point now and then."""
    out: list[str] = []
    while len(out) < length:
        if rng.random() < 0.1:
            code = rng.randrange(0x110000)
            out.append(chr(code) if not 0xD800 <= code <= 0xDFFF else "?")
        else:
            pool = rng.choice(POOLS)
            out += rng.choices(pool, k=rng.choice((1, 1, 2, 3, 7)))
    return "".join(out)
