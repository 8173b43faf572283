"""Vocabularies that are not byte-level BPE, from tokenizer.json: WordPiece, Unigram, characters.

BERT's pieces begin with the mark of a word's start in GGUF, and those inside a word lose their ##
(llama.cpp, convert_hf_to_gguf.py, BertModel.set_vocab). XLM-R's Unigram keeps scores and the table
by which SentencePiece normalizes. A vocabulary of single characters, as models have that are
trained on a book's letters, becomes SentencePiece pieces that never merge.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import numpy as np

from insula.errors import FormatError, UnsupportedError

#: llama.cpp's token types (include/llama.h, enum llama_token_attr's predecessors)
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

#: SentencePiece's mark of a word's start.
MARK = "\u2581"
#: A piece that is in nothing's way.
_LOW = -1000.0


def metadata(model: Mapping[str, Any], n_vocab: int) -> dict[str, Any] | None:
    """GGUF's tokenizer.* keys, or None if tokenizer.json holds none of these."""
    inner = model.get("model") or {}
    added = model.get("added_tokens", [])
    kind, vocab = inner.get("type"), inner.get("vocab")
    if kind == "WordPiece" and isinstance(vocab, dict):
        return _wordpiece(model, inner, {i: t for t, i in vocab.items()}, added, n_vocab)
    if kind == "Unigram" and isinstance(vocab, list):
        return _unigram(model, inner, vocab, added, n_vocab)
    if kind in ("WordLevel", "BPE") and isinstance(vocab, dict):
        special = {token["content"] for token in added} | {inner.get("unk_token")}
        if not inner.get("merges") and all(len(t) == 1 or t in special for t in vocab):
            return _characters(model, inner, {i: t for t, i in vocab.items()}, added, n_vocab)
    return None


def token_list(
    tokens: dict[int, str], added: list[Mapping[str, Any]], n_vocab: int
) -> tuple[list[str], list[int]]:
    """Tokens 0..n_vocab-1 and their types, holes filled with unused ones."""
    kinds = dict.fromkeys(tokens, NORMAL)
    for token in added:
        tokens[token["id"]] = token["content"]
        kinds[token["id"]] = CONTROL if token.get("special") else USER_DEFINED
    if tokens and max(tokens) >= n_vocab:
        raise FormatError(
            f"the tokenizer has ids up to {max(tokens)}, the embedding {n_vocab} rows"
        )
    return (
        [tokens.get(i, f"[PAD{i}]") for i in range(n_vocab)],
        [kinds.get(i, UNUSED) for i in range(n_vocab)],
    )


def _wordpiece(
    model: Mapping[str, Any],
    inner: Mapping[str, Any],
    tokens: dict[int, str],
    added: list[Mapping[str, Any]],
    n_vocab: int,
) -> dict[str, Any]:
    normalizer = model.get("normalizer") or {}
    before = model.get("pre_tokenizer") or {}
    known = (
        normalizer.get("type") == "BertNormalizer"
        and normalizer.get("clean_text", True)
        and normalizer.get("handle_chinese_chars", True)
        and before.get("type") == "BertPreTokenizer"
        and inner.get("continuing_subword_prefix", "##") == "##"
        and inner.get("max_input_chars_per_word", 100) == 100
    )
    if not known:
        raise UnsupportedError(
            "tokenizer.json's WordPiece is not BERT's: its normalizer is "
            f"{normalizer.get('type')!r}, its pre-tokenizer {before.get('type')!r}"
        )
    lowercase = bool(normalizer.get("lowercase", True))
    strip = normalizer.get("strip_accents")
    special = {t["id"] for t in added}
    marked = {
        i: t if i in special else t[2:] if t.startswith("##") and len(t) > 2 else MARK + t
        for i, t in tokens.items()
    }
    names, types = token_list(marked, added, n_vocab)
    ids = {t: i for i, t in tokens.items()}
    start, end = _template(model, ids)
    unknown = ids.get(inner.get("unk_token", "[UNK]"))
    meta = {
        "ggml.model": "bert",
        "ggml.pre": "default",
        "ggml.tokens": names,
        "ggml.token_type": np.array(types, np.int32),
        "ggml.normalizer.lowercase": lowercase,
        "ggml.normalizer.strip_accents": lowercase if strip is None else bool(strip),
        "ggml.cls_token_id": start,
        "ggml.bos_token_id": start,
        "ggml.seperator_token_id": end,  # spelled like this in the files
        "ggml.eos_token_id": end,
        "ggml.unknown_token_id": unknown,
        "ggml.mask_token_id": ids.get("[MASK]"),
    }
    return {key: value for key, value in meta.items() if value is not None}


def _template(model: Mapping[str, Any], ids: Mapping[str, int]) -> tuple[int, int]:
    """The tokens that the post-processor puts around a text."""
    step = model.get("post_processor") or {}
    found: list[Any] = []
    if step.get("type") == "TemplateProcessing":
        found = [p.get("SpecialToken", {}).get("id") for p in step.get("single", [])]
    elif step.get("type") in ("BertProcessing", "RobertaProcessing"):
        found = [(step.get("cls") or [None])[0], None, (step.get("sep") or [None])[0]]
    if len(found) != 3 or found[1] is not None or not {found[0], found[2]} <= set(ids):
        raise UnsupportedError(
            "tokenizer.json puts other things around a text than one token before and one after it"
        )
    return ids[found[0]], ids[found[2]]


def _unigram(
    model: Mapping[str, Any],
    inner: Mapping[str, Any],
    vocab: list[Any],
    added: list[Mapping[str, Any]],
    n_vocab: int,
) -> dict[str, Any]:
    if inner.get("byte_fallback"):
        raise UnsupportedError("tokenizer.json's Unigram falls back to bytes; unknown here")
    prefix, cuts = _prefix_space(model.get("pre_tokenizer") or {})
    table, collapses = _normalization(model.get("normalizer"))
    if cuts and table is None:
        raise UnsupportedError(
            "tokenizer.json's Unigram cuts at all white space and has no table that makes it spaces"
        )
    pieces = {i: str(entry[0]) for i, entry in enumerate(vocab)}
    names, types = token_list(dict(pieces), added, n_vocab)
    scores = [float(entry[1]) for entry in vocab] + [_LOW] * (n_vocab - len(vocab))
    unknown = inner.get("unk_id")
    if isinstance(unknown, int):
        types[unknown] = UNKNOWN
    ids = {t: i for i, t in enumerate(names)}
    start, end = _template(model, ids)
    meta: dict[str, Any] = {
        "ggml.model": "t5",
        "ggml.pre": "default",
        "ggml.tokens": names,
        "ggml.scores": np.array(scores, np.float32),
        "ggml.token_type": np.array(types, np.int32),
        "ggml.add_space_prefix": prefix,
        "ggml.remove_extra_whitespaces": collapses or cuts,
        "ggml.add_bos_token": True,
        "ggml.add_eos_token": True,
        "ggml.bos_token_id": start,
        "ggml.cls_token_id": start,
        "ggml.eos_token_id": end,
        "ggml.seperator_token_id": end,  # spelled like this in the files
    }
    if isinstance(unknown, int):
        meta["ggml.unknown_token_id"] = unknown
    if table is not None:
        meta["ggml.precompiled_charsmap"] = table
    return meta


def _prefix_space(before: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether a text begins with a space, and whether white space only separates words; Metaspace,
    alone or after cutting at white space."""
    steps = before.get("pretokenizers", [before])
    kept = [s for s in steps if s.get("type") != "WhitespaceSplit"]
    if len(kept) != 1 or kept[0].get("type") != "Metaspace":
        raise UnsupportedError("tokenizer.json's Unigram has another pre-tokenizer than Metaspace")
    step = kept[0]
    scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
    return bool(scheme != "never"), len(kept) < len(steps)


def _normalization(normalizer: Mapping[str, Any] | None) -> tuple[Any, bool]:
    """SentencePiece's table, and whether runs of spaces become one."""
    steps = (normalizer or {}).get("normalizers", [normalizer] if normalizer else [])
    table, collapses = None, False
    for step in steps:
        match step.get("type"):
            case "Precompiled":
                try:
                    data = base64.b64decode(step.get("precompiled_charsmap") or "", validate=True)
                except (binascii.Error, ValueError, TypeError) as error:
                    raise FormatError(f"tokenizer.json's normalizer is damaged: {error}") from None
                table = np.frombuffer(data, np.uint8).copy() if data else None
            case "Replace" if (step.get("pattern") or {}).get("Regex") in (" {2,}", r"\s{2,}"):
                collapses = True
            case "Strip":
                collapses = True
            case other:
                raise UnsupportedError(f"tokenizer.json's Unigram has a normalizer {other!r}")
    return table, collapses


def _characters(
    model: Mapping[str, Any],
    inner: Mapping[str, Any],
    tokens: dict[int, str],
    added: list[Mapping[str, Any]],
    n_vocab: int,
) -> dict[str, Any]:
    before = model.get("pre_tokenizer")
    if inner.get("type") == "WordLevel" and not _cuts_all(before):
        raise UnsupportedError(
            "tokenizer.json's vocabulary is single characters, but its pre-tokenizer does not cut "
            "a text into them (Split by '' or '.', Isolated)"
        )
    if inner.get("type") == "BPE" and before is not None:
        raise UnsupportedError("tokenizer.json's single characters have a pre-tokenizer; unknown")
    if model.get("normalizer") is not None or model.get("post_processor") is not None:
        raise UnsupportedError("tokenizer.json's single characters are normalized or wrapped")
    spaced = {i: MARK if t == " " else t for i, t in tokens.items()}
    names, types = token_list(spaced, added, n_vocab)
    ids = {t: i for i, t in tokens.items()}
    unknown = ids.get(inner.get("unk_token") or "")
    if unknown is not None:
        types[unknown] = UNKNOWN
    meta: dict[str, Any] = {
        "ggml.model": "llama",
        "ggml.pre": "default",
        "ggml.tokens": names,
        "ggml.scores": np.zeros(n_vocab, np.float32),
        "ggml.token_type": np.array(types, np.int32),
        "ggml.add_space_prefix": False,
        "ggml.add_bos_token": False,
    }
    return meta if unknown is None else meta | {"ggml.unknown_token_id": unknown}


def _cuts_all(before: Any) -> bool:
    """Whether a pre-tokenizer cuts between all characters."""
    if not isinstance(before, Mapping) or before.get("type") != "Split":
        return False
    pattern = before.get("pattern") or {}
    cuts = pattern in ({"String": ""}, {"Regex": ""}, {"Regex": "."}, {"Regex": r"(?s:.)"})
    return cuts and before.get("behavior") == "Isolated"
