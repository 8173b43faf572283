"""Masks over vocabularies of every family: what is walked at random under them is what is shown."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import numpy as np
import pytest

from insula.engine.constraint import Constraints
from insula.errors import ConstraintError, EngineError
from insula.tokenizer import Tokenizer
from insula.types import Constraint
from tokenizer import small
from tokenizer.conftest import shared, vocabulary  # noqa: F401 - fixtures

PIECES = [
    *((piece, -1.0 - i) for i, piece in enumerate(["▁t", "▁th", "▁the", "▁y", "▁ye", "▁yes"])),
    *[("é", -9.0), ("▁", -10.0), ('{"', -11.0)],
]
SCHEMA = {
    "type": "object",
    "properties": {"yes": {"type": "boolean"}, "él": {"enum": ["the end", "ñ", "<s>"]}},
    "required": ["yes", "él"],
    "additionalProperties": False,
}


def letters(alphabet: str) -> Tokenizer:
    """One token a character, and no end of a text."""
    tokens = [small.MARK if sign == " " else sign for sign in alphabet]
    rest = {"add_space_prefix": False, "add_bos_token": False}
    scores = np.zeros(len(tokens), np.float32)
    return Tokenizer.from_metadata(small.metadata("llama", tokens, scores=scores, **rest))


FAMILIES: dict[str, Callable[[], Tokenizer]] = {
    "bytes": lambda: Tokenizer.from_metadata(small.byte_level()),
    "sentencepiece": lambda: Tokenizer.from_metadata(small.sentencepiece(PIECES)),
    "without a space in front": lambda: Tokenizer.from_metadata(
        small.sentencepiece(PIECES, add_space_prefix=False)
    ),
    "letters": lambda: letters('abcdefghijklmnopqrstuvwxyz {}[]":,\n\\<>'),
}


def walk(tokenizer: Tokenizer, constraint: Constraint, seed: int, *, most: int = 400) -> list[int]:
    """Ids chosen at random of those allowed, to the end."""
    rng = random.Random(seed)
    n_vocab = tokenizer.vocab_size
    matcher = Constraints(tokenizer, n_vocab=n_vocab).matcher(constraint)
    ids: list[int] = []
    while not matcher.ended:
        assert len(ids) < most
        bits = np.unpackbits(matcher.allowed().view(np.uint8), bitorder="little")
        allowed = np.flatnonzero(bits[:n_vocab]).tolist()
        token = rng.choice(allowed)
        if token in tokenizer.eog_ids:
            break
        assert not tokenizer.is_special(token)
        matcher.accept(token)
        ids.append(token)
    return ids


@pytest.mark.parametrize("family", ["bytes", "sentencepiece", "without a space in front"])
@pytest.mark.parametrize("seed", range(5))
def test_a_schema_over_any_vocabulary(family: str, seed: int) -> None:
    tokenizer = FAMILIES[family]()
    ids = walk(tokenizer, Constraint(kind="json_schema", text=json.dumps(SCHEMA)), seed)
    text = tokenizer.decode(ids, continues=True)
    found = json.loads(text)
    assert set(found) == {"yes", "él"}
    assert found["él"] in ("the end", "ñ", "<s>")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_is_shown_as_the_grammar_has_it(family: str) -> None:
    """With its first space, and without one that it does not have."""
    tokenizer = FAMILIES[family]()
    for text in ("yes", " yes", "the yes the"):
        constraint = Constraint(kind="lark", text=f"start: {json.dumps(text)}")
        ids = walk(tokenizer, constraint, 1)
        assert tokenizer.decode(ids, continues=True) == text


def test_what_must_follow_is_written_as_the_tokenizer_does() -> None:
    """One way on, in the tokens that the model was trained on, and not byte by byte."""
    tokenizer = FAMILIES["sentencepiece"]()
    ids = walk(tokenizer, Constraint(kind="lark", text='start: "é yes the"'), 3)
    assert [tokenizer.token_bytes(i) for i in ids] == ["é".encode(), b" yes", b" the"]
    tokenizer = FAMILIES["bytes"]()
    ids = walk(tokenizer, Constraint(kind="lark", text='start: "the and thing"'), 3)
    assert ids == tokenizer.encode("the and thing", add_special=False)


def test_letters_without_an_end() -> None:
    tokenizer = FAMILIES["letters"]()
    assert not tokenizer.eog_ids
    ids = walk(tokenizer, Constraint(kind="regex", text="(ab|c){3}d"), 2)
    assert tokenizer.decode(ids).endswith("d")
    with pytest.raises(ConstraintError, match="lacks its characters"):
        walk(tokenizer, Constraint(kind="json_schema", text='{"const": 1}'), 2)
    with pytest.raises(EngineError, match="no token with which the constraint could go on"):
        walk(tokenizer, Constraint(kind="regex", text="ab[0-9]"), 2)


def test_rows_of_logits_that_no_text_has() -> None:
    tokenizer = FAMILIES["bytes"]()
    constraints = Constraints(tokenizer, n_vocab=tokenizer.vocab_size + 70)
    allowed = constraints.matcher(Constraint(kind="regex", text="(.|\n)*")).allowed()
    bits = np.unpackbits(allowed.view(np.uint8), bitorder="little")
    assert len(bits) >= tokenizer.vocab_size + 70
    assert not bits[tokenizer.vocab_size :].any()
    assert bits[:256].any()


@pytest.mark.parametrize(
    "name", ["llama-spm", "llama-bpe", "phi-3", "qwen2", "gpt-2", "falcon", "gemma-4"]
)
def test_published_vocabularies(vocabulary, name: str) -> None:  # noqa: F811 - a fixture
    _, tokenizer = vocabulary(name)
    for seed in range(3):
        ids = walk(tokenizer, Constraint(kind="json_schema", text=json.dumps(SCHEMA)), seed)
        assert set(json.loads(tokenizer.decode(ids, continues=True))) == {"yes", "él"}
