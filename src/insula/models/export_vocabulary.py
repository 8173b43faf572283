"""GGUF vocabularies that are not byte-level BPE as a tokenizer.json: WordPiece and Unigram.

The way back of `convert_vocabulary`: BERT's pieces get their ## again and lose the mark of a word's
start; XLM-R's Unigram keeps its scores and the table by which SentencePiece normalizes.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np

from insula.errors import FormatError
from insula.models.convert_vocabulary import CONTROL, MARK, UNKNOWN, UNUSED, USER_DEFINED

_PREFIX = "tokenizer.ggml."


def wordpiece(meta: Mapping[str, Any], tokens: list[str], types: list[int]) -> dict[str, Any]:
    """A tokenizer.json for BERT's vocabulary. Raises FormatError."""
    special = {i for i, kind in enumerate(types) if kind in (CONTROL, USER_DEFINED)}
    plain = {i: _unmarked(token) for i, token in enumerate(tokens) if i not in special}
    vocab = {
        tokens[i] if i in special else plain[i]: i
        for i in range(len(tokens))
        if not _is_filler(i, tokens, types)
    }
    lowercase = bool(meta.get(_PREFIX + "normalizer.lowercase", True))
    strip = bool(meta.get(_PREFIX + "normalizer.strip_accents", lowercase))
    start, end = _around(meta, tokens)
    unknown = _id(meta, "unknown_token_id", tokens)
    if unknown is None:
        raise FormatError("the vocabulary has no tokenizer.ggml.unknown_token_id, which BERT needs")
    return {
        **_frame(tokens, types, {unknown}),
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": strip,
            "lowercase": lowercase,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": _template(tokens, start, end, between=[end], second=1),
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": tokens[unknown],
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocab,
        },
    }


def unigram(meta: Mapping[str, Any], tokens: list[str], types: list[int]) -> dict[str, Any]:
    """A tokenizer.json for a Unigram vocabulary. Raises FormatError."""
    scores = meta.get(_PREFIX + "scores")
    if scores is None or len(scores) != len(tokens):
        raise FormatError(f"{len(tokens)} tokens need as many tokenizer.ggml.scores")
    last = len(tokens)
    while last and _is_filler(last - 1, tokens, types):
        last -= 1  # rows of the embedding beyond the vocabulary
    steps: list[dict[str, Any]] = []
    table = meta.get(_PREFIX + "precompiled_charsmap")
    if table is not None:
        data = np.asarray(table).astype(np.uint8).tobytes()
        coded = base64.b64encode(data).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": coded})
    if meta.get(_PREFIX + "remove_extra_whitespaces", False):
        steps.append({"type": "Strip", "strip_left": True, "strip_right": True})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    space = bool(meta.get(_PREFIX + "add_space_prefix", True))
    metaspace = {"type": "Metaspace", "replacement": MARK, "split": True}
    metaspace["prepend_scheme"] = "always" if space else "never"
    start, end = _around(meta, tokens)
    unknown = _id(meta, "unknown_token_id", tokens)
    return {
        **_frame(tokens[:last], types, set() if unknown is None else {unknown}),
        "normalizer": {"type": "Sequence", "normalizers": steps} if steps else None,
        "pre_tokenizer": metaspace,
        "post_processor": _template(tokens, start, end, between=[end, end], second=0),
        "decoder": metaspace,
        "model": {
            "type": "Unigram",
            "unk_id": unknown,
            "vocab": [
                [token, float(str(np.float32(score)))]
                for token, score in zip(tokens[:last], scores, strict=False)
            ],
            "byte_fallback": False,
        },
    }


def _unmarked(token: str) -> str:
    return token.removeprefix(MARK) if token.startswith(MARK) else "##" + token


def _is_filler(i: int, tokens: list[str], types: list[int]) -> bool:
    return types[i] == UNUSED and tokens[i] == f"[PAD{i}]"


def _frame(tokens: list[str], types: list[int], unknown: set[int]) -> dict[str, Any]:
    """What every tokenizer.json has. unknown: of the tokens that are special here in any case."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    special = [
        {"id": i, "content": token, "special": types[i] != USER_DEFINED or i in unknown, **flags}
        for i, token in enumerate(tokens)
        if types[i] in (CONTROL, USER_DEFINED, UNKNOWN) or i in unknown
    ]
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": special}


def _around(meta: Mapping[str, Any], tokens: list[str]) -> tuple[int, int]:
    """The tokens before and after a text."""
    keys = (("cls", "bos"), ("seperator", "eos"))  # spelled like this in the files
    found = [
        next((i for k in pair if (i := _id(meta, f"{k}_token_id", tokens)) is not None), None)
        for pair in keys
    ]
    if found[0] is None or found[1] is None:
        raise FormatError(
            "the vocabulary names no tokens for a text's start and end "
            "(tokenizer.ggml.cls_token_id and seperator_token_id), which encoders need"
        )
    return found[0], found[1]


def _id(meta: Mapping[str, Any], key: str, tokens: list[str]) -> int | None:
    number = meta.get(_PREFIX + key)
    if number is None or not 0 <= int(number) < len(tokens):
        return None
    return int(number)


def _template(
    tokens: list[str], start: int, end: int, *, between: list[int], second: int
) -> dict[str, Any]:
    """A post-processor that puts start and end around a text. between: what lies between two;
    second: the type of the other one's tokens."""

    def token(i: int, kind: int = 0) -> dict[str, Any]:
        return {"SpecialToken": {"id": tokens[i], "type_id": kind}}

    first = [token(start), {"Sequence": {"id": "A", "type_id": 0}}]
    other = [{"Sequence": {"id": "B", "type_id": second}}, token(end, second)]
    return {
        "type": "TemplateProcessing",
        "single": [*first, token(end)],
        "pair": [*first, *(token(i) for i in between), *other],
        "special_tokens": {
            tokens[i]: {"id": tokens[i], "ids": [i], "tokens": [tokens[i]]} for i in {start, end}
        },
    }
