"""SentencePiece's BPE from a tokenizer.json alone, as transformers 5 saves it.

A tokenizer.json has merges in order of rank where SentencePiece and GGUF have a score for each
piece. The ranks of a vocabulary that comes from SentencePiece are its pieces' scores in order, so
the first rank that makes a piece becomes its score. That is the same only if every way to put a
piece together is among the merges, side by side; a vocabulary of another kind is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from insula.errors import UnsupportedError
from insula.models.convert_vocabulary import BYTE, MARK, UNKNOWN, token_list

_NEVER_MERGED = -1e6
_BYTES = [f"<0x{i:02X}>" for i in range(256)]
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": MARK}
_PREPEND = {"type": "Prepend", "prepend": MARK}
#: Gemma's, which cuts nothing: there are no spaces left.
_NO_CUT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious"}

NOTE = (
    "a text that begins with a space gets one more before it, as SentencePiece does and this "
    "tokenizer.json does not"
)


def metadata(model: Mapping[str, Any], n_vocab: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    """GGUF's tokenizer.* keys and notes for the user; ({}, ()) if it is not BPE with bytes to fall
    back on. Raises UnsupportedError."""
    bpe = model.get("model") or {}
    vocab = bpe.get("vocab")
    if bpe.get("type") != "BPE" or not bpe.get("byte_fallback") or not isinstance(vocab, dict):
        return {}, ()
    if bpe.get("ignore_merges") or not set(_BYTES) <= set(vocab):
        raise UnsupportedError(
            "tokenizer.json's BPE falls back to bytes, but has not all 256, or ignores merges"
        )
    prefix, notes = _spaces(model.get("normalizer"), model.get("pre_tokenizer"))
    added = model.get("added_tokens", [])
    names, types = token_list({i: t for t, i in vocab.items()}, added, n_vocab)
    ranks = _ranks(vocab, bpe.get("merges") or [], {t["content"] for t in added})
    for token in _BYTES:
        types[vocab[token]] = BYTE
    unknown = vocab.get(bpe.get("unk_token") or "")
    meta: dict[str, Any] = {
        "ggml.model": "llama",
        "ggml.pre": "default",
        "ggml.tokens": names,
        "ggml.scores": np.array([-ranks.get(t, -_NEVER_MERGED) for t in names], np.float32),
        "ggml.add_space_prefix": prefix,
        "ggml.add_bos_token": True,
    }
    if unknown is not None:
        types[unknown] = UNKNOWN
        meta["ggml.unknown_token_id"] = unknown
    return meta | {"ggml.token_type": np.array(types, np.int32)}, notes


def _spaces(normalizer: Any, before: Any) -> tuple[bool, tuple[str, ...]]:
    """Whether a space is put before a text, and notes."""
    steps = (normalizer or {}).get("normalizers", [normalizer] if normalizer else [])
    before = {k: v for k, v in (before or {}).items() if k not in ("invert", "add_prefix_space")}
    if before.get("type") == "Metaspace" and not steps and not before.get("split", True):
        scheme = before.get("prepend_scheme", "always")
        return scheme != "never", () if scheme == "never" else (NOTE,)
    if before in ({}, _NO_CUT) and steps in ([_REPLACE], [_PREPEND, _REPLACE]):
        return len(steps) == 2, ()
    raise UnsupportedError(
        "tokenizer.json's BPE falls back to bytes, but treats spaces otherwise than SentencePiece: "
        f"its normalizer is {str(normalizer)[:120]}, its pre-tokenizer {str(before)[:120]}"
    )


def _ranks(vocab: Mapping[str, int], merges: list[Any], added: set[str]) -> dict[str, int]:
    """The first rank that makes each piece."""
    pairs = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in merges]
    ranks: dict[str, int] = {}
    last = None
    for rank, pair in enumerate(pairs):
        piece = "".join(pair)
        if piece in ranks and piece != last:
            raise UnsupportedError(
                f"tokenizer.json merges {piece!r} at ranks {ranks[piece]} and {rank} with others "
                "between; in SentencePiece's vocabularies a piece has one score"
            )
        ranks.setdefault(piece, rank)
        last = piece
    known = set(pairs)
    for piece in vocab:
        if piece in added or piece in _BYTES:
            continue
        for cut in range(1, len(piece)):
            pair = (piece[:cut], piece[cut:])
            if pair not in known and pair[0] in vocab and pair[1] in vocab:
                raise UnsupportedError(
                    f"tokenizer.json never merges {pair[0]!r} and {pair[1]!r}, though {piece!r} is "
                    "a token; SentencePiece would, and the ids would differ"
                )
    return ranks
