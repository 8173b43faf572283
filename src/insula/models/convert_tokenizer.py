"""A Hugging Face tokenizer as GGUF metadata: byte-level BPE, WordPiece, Unigram, single characters,
or a SentencePiece model.

The pre-tokenizer (how text is cut before merging) has a name in GGUF. It is found by comparing
the definition in tokenizer.json with those known here, part by part; an unknown definition is
refused, since a wrong name gives wrong ids without any error. tokenizer.model, where present
and the BPE of tokenizer.json is not byte-level, is read as a SentencePiece model. What is not BPE
is `convert_vocabulary`'s; SentencePiece's BPE without a tokenizer.model is `convert_ranked`'s.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from insula.errors import FormatError, UnsupportedError
from insula.models import convert_ranked, convert_vocabulary, sentencepiece
from insula.models.convert_vocabulary import NORMAL, USER_DEFINED, token_list
from insula.models.folder import read_json

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_SYMBOLS_AND_SPACE = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LOWER_LAST = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
_UPPER_FIRST = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
_SLASHES_AND_SPACE = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _byte_level(*, use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "use_regex": use_regex}


def _split_then_bytes(regex: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated"}
    return {
        "type": "Sequence",
        "pretokenizers": [split | {"invert": False}, _byte_level(use_regex=False)],
    }


@dataclass(frozen=True, kw_only=True)
class PreTokenizer:
    """One definition and its name. ignore_merges: whole pieces found in the vocabulary win."""

    name: str
    definition: Mapping[str, Any]
    ignore_merges: bool = False
    normalizer: str | None = None


PRE_TOKENIZERS = (
    PreTokenizer(name="gpt-2", definition=_byte_level(use_regex=True)),
    PreTokenizer(
        name="smollm",
        definition={
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                _byte_level(use_regex=True),
            ],
        },
    ),
    PreTokenizer(
        name="falcon",
        definition={
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Punctuation", "behavior": "Contiguous"},
                _byte_level(use_regex=True),
                {"type": "Digits", "individual_digits": False},
                {
                    "type": "Split",
                    "pattern": {"Regex": "[0-9][0-9][0-9]"},
                    "behavior": "Isolated",
                    "invert": False,
                },
            ],
        },
    ),
    PreTokenizer(
        name="llama-bpe",
        definition=_split_then_bytes(_CONTRACTIONS + r"\p{N}{1,3}" + _SYMBOLS_AND_SPACE),
        ignore_merges=True,
    ),
    PreTokenizer(  # Phi-4, OLMo 2
        name="dbrx",
        definition=_split_then_bytes(_CONTRACTIONS + r"\p{N}{1,3}" + _SYMBOLS_AND_SPACE),
    ),
    PreTokenizer(  # gpt-oss, Phi-4-mini
        name="gpt-4o",
        definition=_split_then_bytes(
            _LOWER_LAST + _ENDINGS + _UPPER_FIRST + _ENDINGS + r"\p{N}{1,3}" + _SLASHES_AND_SPACE
        ),
    ),
    PreTokenizer(  # Mistral since NeMo
        name="tekken",
        definition=_split_then_bytes(
            _LOWER_LAST + "|" + _UPPER_FIRST + "|" + r"\p{N}" + _SLASHES_AND_SPACE
        ),
        ignore_merges=True,
    ),
    PreTokenizer(
        name="qwen2",
        definition=_split_then_bytes(_CONTRACTIONS + r"\p{N}" + _SYMBOLS_AND_SPACE),
        normalizer="NFC",
    ),
)

#: What a definition may say beyond these without changing any id.
_NO_EFFECT = frozenset({"trim_offsets"})

_SPECIALS = MappingProxyType(
    {"bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id"}
    | {"pad": "padding_token_id"}
)


def tokenizer_metadata(
    folder: Path, config: Mapping[str, Any], *, n_vocab: int
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """GGUF's tokenizer.* keys for `n_vocab` embedding rows, and notes for the user.

    Rows beyond the tokenizer's vocabulary become unused tokens [PAD<id>], as everywhere in GGUF.
    """
    settings = folder / "tokenizer_config.json"
    options = read_json(settings) if settings.exists() else {}
    definition = folder / "tokenizer.json"
    model = read_json(definition) if definition.exists() else None
    notes: tuple[str, ...] = ()
    if model is not None and _is_byte_level(model):
        meta, notes = _bpe(model, n_vocab)
    elif model is not None and (other := convert_vocabulary.metadata(model, n_vocab)) is not None:
        meta = other
    elif (folder / "tokenizer.model").exists():
        added = (model or {}).get("added_tokens", [])
        meta = _sentencepiece(folder / "tokenizer.model", added, n_vocab)
    elif model is not None and (ranked := convert_ranked.metadata(model, n_vocab))[0]:
        meta, notes = ranked
        meta |= _around(model, model.get("added_tokens", []))
    else:
        raise UnsupportedError(
            f"{folder} has no tokenizer that the converter knows: a tokenizer.json with "
            "byte-level BPE, SentencePiece's BPE, WordPiece, Unigram or single characters, or a "
            "tokenizer.model of SentencePiece"
        )
    ids = {token: i for i, token in enumerate(meta["ggml.tokens"])}
    for short, key in _SPECIALS.items():
        found = _special_id(short, ids, options, config)
        if found is not None and f"ggml.{key}" not in meta:
            meta[f"ggml.{key}"] = found
    if isinstance(options.get("add_bos_token"), bool):
        meta["ggml.add_bos_token"] = options["add_bos_token"]
    if isinstance(options.get("add_eos_token"), bool):
        meta["ggml.add_eos_token"] = options["add_eos_token"]
    template = _chat_template(folder, options)
    if template is not None:
        meta["chat_template"] = template
    return meta, notes


def _is_byte_level(model: Mapping[str, Any]) -> bool:
    return "ByteLevel" in json.dumps(model.get("pre_tokenizer"))


def _bpe(model: Mapping[str, Any], n_vocab: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    bpe = model.get("model") or {}
    if bpe.get("type", "BPE") != "BPE" or not isinstance(bpe.get("vocab"), dict):
        raise UnsupportedError(f"tokenizer.json holds a {bpe.get('type')!r} model, not BPE")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if bpe.get(key):
            raise UnsupportedError(f"tokenizer.json sets {key} to {bpe[key]!r}; GGUF has none")
    pre = identify(model)
    tokens, types = token_list(
        {i: token for token, i in bpe["vocab"].items()}, model.get("added_tokens", []), n_vocab
    )
    meta: dict[str, Any] = {
        "ggml.model": "gpt2",
        "ggml.pre": pre.name,
        "ggml.tokens": tokens,
        "ggml.token_type": np.array(types, np.int32),
        "ggml.merges": [m if isinstance(m, str) else " ".join(m) for m in bpe["merges"]],
        **_around(model, model.get("added_tokens", [])),
    }
    note = f"the tokenizer normalizes text to {pre.normalizer} first; GGUF tokenizers do not"
    return meta, (note,) if pre.normalizer else ()


def identify(model: Mapping[str, Any]) -> PreTokenizer:
    """The pre-tokenizer that a tokenizer.json defines. Raises UnsupportedError if unknown."""
    found = _essence(model.get("pre_tokenizer"))
    normalizer = model.get("normalizer") or {}
    kind = None if normalizer.get("normalizers") == [] else normalizer.get("type")
    ignore_merges = bool((model.get("model") or {}).get("ignore_merges"))
    same = [known for known in PRE_TOKENIZERS if known.definition == found]
    for known in same:
        if ignore_merges == known.ignore_merges and kind in (None, known.normalizer):
            return known
    if same:
        raise UnsupportedError(
            f"tokenizer.json cuts text as {same[0].name!r} does, but with ignore_merges="
            f"{ignore_merges} and the normalizer {kind}; known here: "
            + ", ".join(f"{p.name} with {p.ignore_merges} and {p.normalizer}" for p in same)
        )
    raise UnsupportedError(
        "tokenizer.json defines a pre-tokenizer that is not one of "
        f"{', '.join(p.name for p in PRE_TOKENIZERS)}: {json.dumps(found)[:300]}"
    )


def _essence(definition: Any) -> Any:
    """A definition without what has no effect on ids."""
    if isinstance(definition, dict):
        return {k: _essence(v) for k, v in definition.items() if k not in _NO_EFFECT}
    if isinstance(definition, list):
        return [_essence(v) for v in definition]
    return definition


def _around(model: Mapping[str, Any], added: list[Mapping[str, Any]]) -> dict[str, Any]:
    """What tokenizer.json's post-processor puts before and after a text, as GGUF's keys."""
    processor = model.get("post_processor") or {}
    steps = processor.get("processors", [processor])
    meta: dict[str, Any] = {"ggml.add_bos_token": False}
    ids = {token["content"]: token["id"] for token in added}
    for step in steps:
        match step.get("type"):
            case None | "ByteLevel":
                pass
            case "RobertaProcessing":
                meta |= {"ggml.add_bos_token": True, "ggml.add_eos_token": True}
            case "TemplateProcessing":
                single = step.get("single", [])
                kinds = [next(iter(part)) for part in single]
                if "Sequence" not in kinds or len(kinds) > 3 or kinds.count("Sequence") != 1:
                    raise UnsupportedError(f"tokenizer.json wraps text as {kinds}; unknown here")
                place = kinds.index("Sequence")
                before, after = single[:place], single[place + 1 :]
                if len(before) > 1 or len(after) > 1:
                    raise UnsupportedError(f"tokenizer.json wraps text as {kinds}; unknown here")
                meta["ggml.add_bos_token"] = bool(before)
                if after:  # which need not be the one that config.json calls the end
                    name = after[0]["SpecialToken"]["id"]
                    meta |= {"ggml.add_eos_token": True, "ggml.eos_token_id": ids.get(name)}
            case other:
                raise UnsupportedError(f"tokenizer.json has a post-processor {other!r}")
    return {key: value for key, value in meta.items() if value is not None}


def _sentencepiece(path: Path, added: list[Mapping[str, Any]], n_vocab: int) -> dict[str, Any]:
    model = sentencepiece.read(path)
    tokens = {i: piece.text for i, piece in enumerate(model.pieces)}
    names, types = token_list(dict(tokens), added, n_vocab)
    for i, piece in enumerate(model.pieces):
        # What SentencePiece calls user-defined, tokenizer.json may rightly call special.
        if piece.type not in (NORMAL, USER_DEFINED) or types[i] == NORMAL:
            types[i] = piece.type
    scores = [p.score for p in model.pieces] + [-1000.0] * (n_vocab - len(model.pieces))
    return {
        "ggml.model": "llama",
        "ggml.pre": "default",
        "ggml.tokens": names,
        "ggml.scores": np.array(scores, np.float32),
        "ggml.token_type": np.array(types, np.int32),
        "ggml.add_space_prefix": model.add_dummy_prefix,
        "ggml.add_bos_token": True,
    }


def _special_id(
    short: str, ids: Mapping[str, int], options: Mapping[str, Any], config: Mapping[str, Any]
) -> int | None:
    """A special token's id: by name in tokenizer_config.json, else by id in config.json."""
    named = options.get(f"{short}_token")
    if isinstance(named, dict):
        named = named.get("content")
    if isinstance(named, str):
        if named not in ids:
            raise FormatError(f"{short}_token is {named!r}, which is not in the vocabulary")
        return ids[named]
    numbered = config.get(f"{short}_token_id")
    if isinstance(numbered, list):
        numbered = numbered[0] if numbered else None
    return numbered if isinstance(numbered, int) and 0 <= numbered < len(ids) else None


def _chat_template(folder: Path, options: Mapping[str, Any]) -> str | None:
    alone = folder / "chat_template.jinja"
    if alone.exists():
        return alone.read_text(encoding="utf-8")
    template = options.get("chat_template")
    if isinstance(template, list):  # several by name; the default is the one GGUF holds
        by_name = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = by_name.get("default")
    return template if isinstance(template, str) else None
