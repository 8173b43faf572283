"""A GGUF vocabulary as a Hugging Face folder's tokenizer, the way back of `convert_tokenizer`.

Byte-level BPE becomes a tokenizer.json, SentencePiece BPE a tokenizer.model; WordPiece and Unigram
are `export_vocabulary`'s. A pre-tokenizer without a known definition, and any other family, is
refused: a guess would give wrong ids without any error.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from insula.errors import FormatError, UnsupportedError
from insula.models import export_vocabulary
from insula.models.convert_tokenizer import PRE_TOKENIZERS
from insula.models.convert_vocabulary import CONTROL, NORMAL, UNUSED, USER_DEFINED
from insula.tokenizer import Tokenizer

_ENCODERS: Mapping[str, Callable[[Mapping[str, Any], list[str], list[int]], dict[str, Any]]]
_ENCODERS = {"bert": export_vocabulary.wordpiece, "t5": export_vocabulary.unigram}
_ENCODERS_OWN = {
    "cls_token": "cls_token_id",
    "sep_token": "seperator_token_id",  # spelled like this in the files
    "mask_token": "mask_token_id",
}


def write_tokenizer(meta: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Write the tokenizer's files into `folder`; returns the ids that config.json names.

    Raises FormatError, TokenizerError, UnsupportedError.
    """
    family = meta.get("tokenizer.ggml.model")
    if family is None:
        raise FormatError(
            "the file has no tokenizer (no tokenizer.ggml.model), and a folder without one is of "
            "no use; take a complete GGUF file of the model"
        )
    tokens = [str(token) for token in _needed(meta, "tokens")]
    given = meta.get("tokenizer.ggml.token_type")
    types = [NORMAL] * len(tokens) if given is None else [int(t) for t in given]
    tokenizer = Tokenizer.from_metadata(meta)
    settings: dict[str, Any] = {"clean_up_tokenization_spaces": False}
    if family == "gpt2":
        _write_json(folder / "tokenizer.json", _byte_level(meta, tokenizer, tokens, types))
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    elif family == "llama":
        (folder / "tokenizer.model").write_bytes(_sentencepiece(meta, tokenizer, tokens, types))
        settings["tokenizer_class"] = "LlamaTokenizer"
        settings["legacy"] = False
    elif family in _ENCODERS:
        _write_json(folder / "tokenizer.json", _ENCODERS[family](meta, tokens, types))
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    else:
        raise UnsupportedError(
            f"a tokenizer of the family {family!r} cannot be written; these can: gpt2 (byte-level "
            "BPE), llama (SentencePiece BPE), bert (WordPiece) and t5 (Unigram)"
        )
    for name, number in _specials(tokenizer).items():
        if number is not None:
            settings[name] = tokens[number]
    for name, key in _ENCODERS_OWN.items() if family in _ENCODERS else ():
        if (number := meta.get(f"tokenizer.ggml.{key}")) is not None:
            settings[name] = tokens[int(number)]
    usual = family not in _ENCODERS  # they wrap a text without being told
    if usual or "tokenizer.ggml.add_bos_token" in meta:
        settings["add_bos_token"] = tokenizer.add_bos
    if (usual and tokenizer.add_eos) or "tokenizer.ggml.add_eos_token" in meta:
        settings["add_eos_token"] = tokenizer.add_eos
    if tokenizer.chat_template is not None:
        settings["chat_template"] = tokenizer.chat_template
    _write_json(folder / "tokenizer_config.json", settings)
    # None too: transformers fills a key that is not there with the first checkpoint's.
    ids: dict[str, Any] = {f"{name}_id": n for name, n in _specials(tokenizer).items()}
    del ids["unk_token_id"]
    ends = sorted({i for i in (tokenizer.eos_id, tokenizer.eot_id) if i is not None})
    if len(ends) > 1:
        _write_json(folder / "generation_config.json", {**ids, "eos_token_id": ends})
    return ids


def _specials(tokenizer: Tokenizer) -> dict[str, int | None]:
    return {
        "bos_token": tokenizer.bos_id,
        "eos_token": tokenizer.eos_id,
        "unk_token": tokenizer.unk_id,
        "pad_token": tokenizer.pad_id,
    }


def _byte_level(
    meta: Mapping[str, Any], tokenizer: Tokenizer, tokens: list[str], types: list[int]
) -> dict[str, Any]:
    name = tokenizer.pre
    known = next((pre for pre in PRE_TOKENIZERS if pre.name == name), None)
    if known is None:
        raise UnsupportedError(
            f"the pre-tokenizer {name!r} has no definition here; folders can be written for "
            f"{', '.join(pre.name for pre in PRE_TOKENIZERS)}"
        )
    filler = {i for i, token in enumerate(tokens) if types[i] == UNUSED and token == f"[PAD{i}]"}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": i, "content": token, "special": types[i] == CONTROL, **flags}
        for i, token in enumerate(tokens)
        if types[i] in (CONTROL, USER_DEFINED)
    ]
    processor = None
    if tokenizer.add_bos and tokenizer.bos_id is not None:
        bos = tokenizer.bos_id
        begin = tokens[bos]
        first = {"SpecialToken": {"id": begin, "type_id": 0}}
        processor = {
            "type": "TemplateProcessing",
            "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                first,
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {begin: {"id": begin, "ids": [bos], "tokens": [begin]}},
        }
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": known.normalizer} if known.normalizer else None,
        "pre_tokenizer": _complete(known.definition),
        "post_processor": processor,
        "decoder": {**byte_level, "use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": known.ignore_merges,
            "vocab": {token: i for i, token in enumerate(tokens) if i not in filler},
            "merges": [str(merge).split(" ", 1) for merge in _needed(meta, "merges")],
        },
    }


def _complete(definition: Any) -> Any:
    """A definition with the key that has no effect on ids, and that readers want all the same."""
    if isinstance(definition, list):
        return [_complete(part) for part in definition]
    if not isinstance(definition, dict):
        return definition
    whole = {key: _complete(value) for key, value in definition.items()}
    return {**whole, "trim_offsets": True} if whole.get("type") == "ByteLevel" else whole


def _sentencepiece(
    meta: Mapping[str, Any], tokenizer: Tokenizer, tokens: list[str], types: list[int]
) -> bytes:
    """The protocol buffer of sentencepiece_model.proto, as far as a BPE model needs it."""
    scores = [float(score) for score in _needed(meta, "scores")]
    if len(scores) != len(tokens):
        raise FormatError(f"{len(tokens)} tokens have {len(scores)} scores")
    last = len(tokens)
    while last and types[last - 1] == UNUSED and tokens[last - 1] == f"[PAD{last - 1}]":
        last -= 1  # rows of the embedding beyond the vocabulary
    out = bytearray()
    for token, score, kind in zip(tokens[:last], scores, types, strict=False):
        text = token.encode()
        piece = b"\x0a" + _varint(len(text)) + text + b"\x15" + struct.pack("<f", score)
        piece += b"\x18" + _varint(kind)
        out += b"\x0a" + _varint(len(piece)) + piece
    trainer = b"\x18\x02"  # model_type: BPE
    for field, number in (
        (40, tokenizer.unk_id),
        (41, tokenizer.bos_id),
        (42, tokenizer.eos_id),
        (43, tokenizer.pad_id),
    ):
        trainer += _varint(field << 3) + _varint(-1 if number is None else number)
    prefix = meta.get("tokenizer.ggml.add_space_prefix", True)
    normalizer = bytes([0x18, int(bool(prefix)), 0x20, 0, 0x28, 1])
    for field, message in ((2, trainer), (3, normalizer)):
        out += bytes([field << 3 | 2]) + _varint(len(message)) + message
    return bytes(out)


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # as protocol buffers write negative numbers
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _needed(meta: Mapping[str, Any], key: str) -> Iterable[Any]:
    value = meta.get(f"tokenizer.ggml.{key}")
    if value is None or isinstance(value, str):
        raise FormatError(f"the tokenizer has no tokenizer.ggml.{key}")
    found: Iterable[Any] = value
    return found


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
