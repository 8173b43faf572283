"""BERT's WordPiece: against Hugging Face tokenizers on a real and a small vocabulary."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as HuggingFace
from tokenizers import models, normalizers, pre_tokenizers

from insula.errors import TokenizerError
from insula.tokenizer import Tokenizer
from tokenizer import small

MARK = small.MARK


def huggingface(metadata: dict[str, Any], *, lowercase: bool, strip_accents: bool) -> HuggingFace:
    """The same vocabulary, with ## where GGUF has no mark."""
    tokens = [
        t if t.startswith("[") and i < 1000 and t.endswith("]")
        else t[1:] if t.startswith(MARK) else f"##{t}"
        for i, t in enumerate(metadata["tokenizer.ggml.tokens"])
    ]  # fmt: skip
    made = HuggingFace(
        models.WordPiece(
            {t: i for i, t in enumerate(tokens)}, unk_token="[UNK]", max_input_chars_per_word=100
        )
    )
    made.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return made


#: Letters, marks, spaces, controls and ideographs on which the two may not differ. Left out: what
#: Unicode assigned after the older tables that Hugging Face's normalizer has.
POOLS = [
    *small.POOLS[:5],
    "🦙😀✅①ⓐ",
    "[UNK][SEP]##",
    "\u200b\u00ad\x00\x1c\x7f\ufffd",
    "ỨǅİΣςß",
    "\ufb01ﾞ",
]


@pytest.mark.parametrize(
    ("lowercase", "strip_accents"), [(True, True), (True, False), (False, False)]
)
def test_a_real_vocabulary_agrees_with_hugging_face(
    lowercase: bool, strip_accents: bool, shared: Path, vocabulary: Any
) -> None:
    metadata, _ = vocabulary("bert-bge")
    oracle = huggingface(metadata, lowercase=lowercase, strip_accents=strip_accents)
    flags = {"normalizer.lowercase": lowercase, "normalizer.strip_accents": strip_accents}
    tokenizer = Tokenizer.from_metadata(metadata | {small.P + k: v for k, v in flags.items()})
    rng = random.Random(0)
    names = ("el_quijote.txt", "el_quijote_primera_parte.txt", "tinyshakespeare.txt")
    texts = [(shared / "data/texts" / name).read_text()[:100_000] for name in names]
    for _ in range(400):
        pools = [rng.choice(POOLS) for _ in range(rng.randrange(1, 12))]
        texts.append("".join("".join(rng.choices(p, k=rng.randrange(1, 6))) for p in pools))
    texts += ["a" * 99, "a" * 100, "a" * 101, "é" * 100, "中" * 300, "unaffable " * 50]
    for text in texts:
        if not strip_accents:
            text = text.replace("İ", "")  # its full lower case is two characters
        assert tokenizer.encode(text, add_special=False) == oracle.encode(text).ids, ascii(text)


def test_hangul_and_marks_are_decomposed() -> None:
    metadata = small.wordpiece([*"abce", "##e", "\u1112", "##\u1161", "##\u11ab", "한"])
    tokens = metadata["tokenizer.ggml.tokens"]

    def texts(text: str, **flags: bool) -> list[str]:
        made = Tokenizer.from_metadata(metadata | {small.P + k: v for k, v in flags.items()})
        return [tokens[i] for i in made.encode(text, add_special=False)]

    assert texts("한") == [MARK + "\u1112", "\u1161", "\u11ab"]
    assert texts("한", **{"normalizer.strip_accents": False}) == [MARK + "한"]
    assert texts("É e\u0301") == [MARK + "e", MARK + "e"]
    assert texts("É", **{"normalizer.lowercase": False, "normalizer.strip_accents": True}) == [
        "[UNK]"
    ]


def test_words_and_their_parts() -> None:
    metadata = small.wordpiece()
    tokenizer = Tokenizer.from_metadata(metadata)
    tokens = metadata["tokenizer.ggml.tokens"]

    def texts(text: str, **options: bool) -> list[str]:
        return [tokens[i].replace(MARK, "_") for i in tokenizer.encode(text, **options)]

    assert texts("UNwanted running") == ["[CLS]", "_un", "want", "ed", "_runn", "ing", "[SEP]"]
    assert texts("unwantedX running", add_special=False) == ["[UNK]", "_runn", "ing"]
    assert texts("hello,world中!", add_special=False) == ["_hello", "_,", "_world", "_中", "_!"]
    assert texts("[CLS]", add_special=False) == ["[UNK]"] * 3
    assert texts("[CLS]a", add_special=False, parse_special=True) == ["[CLS]", "_a"]
    assert texts("") == ["[CLS]", "[SEP]"]
    assert tokenizer.decode(tokenizer.encode("hello world"), skip_special=True) == "hello world"
    assert tokenizer.eog_ids == frozenset()


def test_a_vocabulary_without_the_special_tokens_is_refused() -> None:
    for missing, key in (
        ("unknown_token_id", "unknown_token_id"),
        ("seperator_token_id", "seperator"),
    ):
        metadata = small.wordpiece()
        position = int(metadata.pop(small.P + missing))
        metadata["tokenizer.ggml.tokens"][position] = "something else"
        with pytest.raises(TokenizerError, match=key):
            Tokenizer.from_metadata(metadata)
