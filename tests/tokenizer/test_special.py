"""Special tokens: where they are found, what they swallow, and which end an answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from insula.errors import TokenizerError
from insula.tokenizer import Tokenizer
from tokenizer import small

CONTROL, USER, NORMAL, UNKNOWN = small.CONTROL, small.USER_DEFINED, small.NORMAL, small.UNKNOWN


def texts(metadata: dict[str, Any], text: str, **options: bool) -> list[str]:
    """The tokens of `text` by their texts in the vocabulary."""
    options = {"add_special": False} | options
    ids = Tokenizer.from_metadata(metadata).encode(text, **options)
    return [metadata["tokenizer.ggml.tokens"][i] for i in ids]


def test_control_tokens_are_text_unless_parsed() -> None:
    metadata = small.byte_level()
    chat = "<|im_start|>er<|im_end|>"
    assert texts(metadata, chat, parse_special=True) == ["<|im_start|>", "er", "<|im_end|>"]
    plain = texts(metadata, chat)
    assert "".join(plain) == chat
    assert not {"<|im_start|>", "<|im_end|>"} & set(plain)


def test_user_defined_tokens_are_always_found_and_shown() -> None:
    metadata = small.byte_level(extra=[("<tool>", USER)])
    tokenizer = Tokenizer.from_metadata(metadata)
    assert texts(metadata, "er<tool>er") == ["er", "<tool>", "er"]
    ids = tokenizer.encode("<tool><|im_end|>", parse_special=True, add_special=False)
    assert tokenizer.decode(ids) == "<tool><|im_end|>"
    assert tokenizer.decode(ids, skip_special=True) == "<tool>"
    assert [tokenizer.is_special(i) for i in ids] == [False, True]


def test_the_longest_token_at_the_leftmost_place_wins() -> None:
    extra = [
        ("<a", USER),
        ("<a>", USER),
        ("<a><b>", USER),
        ("a><c", USER),
        ("\n", USER),
        ("\n\n", USER),
    ]
    metadata = small.byte_level(extra=extra)
    assert texts(metadata, "<a><b>") == ["<a><b>"]
    assert texts(metadata, "<a><c>") == ["<a>", "<", "c", ">"]
    assert texts(metadata, "<a<a>") == ["<a", "<a>"]
    assert texts(metadata, "\n\n\n") == ["\n\n", "\n"]
    assert texts(metadata, "<") == ["<"]


def test_many_special_tokens_in_a_long_text() -> None:
    """A thousand tokens in half a megabyte of near misses: one pass, not a pass for each."""
    extra = [(f"<|reserved_{i}|>", CONTROL) for i in range(1000)]
    tokenizer = Tokenizer.from_metadata(small.byte_level(extra=extra))
    text = "<|reserved_7" * 40_000 + "<|reserved_999|>"
    ids = tokenizer.encode(text, parse_special=True)
    assert ids[-1] == tokenizer.token_id("<|reserved_999|>")
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    ("found", "ends", "turn"),
    [
        (["<|eot_id|>", "<|im_end|>"], ["<|eot_id|>", "<|im_end|>"], "<|eot_id|>"),
        (
            ["<end_of_turn>", "<|tool_response>"],
            ["<end_of_turn>", "<|tool_response>"],
            "<end_of_turn>",
        ),
        # harmony: <|end|> closes a message, not the answer
        (["<|end|>", "<|return|>", "<|call|>"], ["<|return|>", "<|call|>"], "<|end|>"),
        (["<|end|>", "<|user|>"], ["<|end|>"], "<|end|>"),
        (["<|tool_response>", "</s>"], ["<|tool_response>"], None),
        (
            ["<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"],
            ["<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"],
            None,
        ),
    ],
)
def test_what_ends_an_answer(found: list[str], ends: list[str], turn: str | None) -> None:
    metadata = small.byte_level(extra=[(text, CONTROL) for text in found])
    tokens = metadata["tokenizer.ggml.tokens"]
    tokens[tokens.index("<|im_end|>")] = "<|other|>"  # keep the shared ones out of the way
    tokens[tokens.index("<|endoftext|>")] = "<|first|>"
    if "<|im_end|>" in found:
        assert tokens.count("<|im_end|>") == 0 or tokens.index("<|im_end|>") >= 256
        tokens[-1] = "<|im_end|>"
    tokenizer = Tokenizer.from_metadata(metadata)
    expected = {tokens.index(text) for text in ends} | {tokenizer.eos_id}
    assert tokenizer.eog_ids >= expected
    assert {tokens[i] for i in tokenizer.eog_ids} - {turn} == {tokens[i] for i in expected} - {turn}
    assert tokenizer.eot_id == (tokens.index(turn) if turn else None)


def test_an_end_token_that_the_file_calls_normal() -> None:
    """<|eot_id|> cannot be meant as text; the </s> of a vocabulary that knows HTML is."""
    metadata = small.byte_level(extra=[("<|eot_id|>", NORMAL), ("</s>", NORMAL)])
    tokenizer = Tokenizer.from_metadata(metadata)
    eot, html = tokenizer.token_id("<|eot_id|>"), tokenizer.token_id("</s>")
    assert eot in tokenizer.eog_ids
    assert tokenizer.is_special(eot or 0)
    assert html not in tokenizer.eog_ids
    assert not tokenizer.is_special(html or 0)
    assert tokenizer.encode("<|eot_id|>", parse_special=True) == [eot]


def test_ids_that_the_file_gives_are_taken() -> None:
    metadata = small.byte_level()
    ids = {"bos_token_id": 65, "eos_token_id": 66, "eot_token_id": 67, "padding_token_id": 68}
    ids |= {"unknown_token_id": 69, "seperator_token_id": 70}
    flags = {"add_bos_token": True, "add_eos_token": True}
    metadata |= {small.P + k: v for k, v in (ids | flags).items()}
    tokenizer = Tokenizer.from_metadata(metadata)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.eot_id) == (65, 66, 67)
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.sep_id) == (68, 69, 70)
    assert {66, 67} <= tokenizer.eog_ids
    assert tokenizer.encode("x") == [65, ord("x"), 66]
    assert not tokenizer.is_special(66)  # normal text may use it


def test_none_is_none() -> None:
    """llama.cpp writes 2^32 - 1 where there is no token."""
    metadata = small.byte_level()
    metadata[small.P + "padding_token_id"] = 2**32 - 1
    metadata[small.P + "bos_token_id"] = np.uint32(2**32 - 1)
    tokenizer = Tokenizer.from_metadata(metadata)
    assert tokenizer.pad_id is None
    assert tokenizer.bos_id is None
    assert tokenizer.encode("") == []


@pytest.mark.parametrize(("flag", "key"), [("add_bos_token", "bos"), ("add_eos_token", "eos")])
def test_a_token_that_must_be_added_must_be_there(flag: str, key: str) -> None:
    metadata = small.byte_level()
    metadata[small.P + flag] = True
    del metadata[f"{small.P}{key}_token_id"]
    with pytest.raises(TokenizerError, match=f"tokenizer.ggml.{key}_token_id is missing"):
        Tokenizer.from_metadata(metadata)


def test_phi3_swallows_the_space_after_a_special_token(vocabulary: Any) -> None:
    _, tokenizer = vocabulary("phi-3")
    user, end = tokenizer.token_id("<|user|>"), tokenizer.token_id("<|end|>")
    ids = tokenizer.encode("<|user|>\n\t Hi<|end|>\n", add_special=False, parse_special=True)
    assert ids == [user, *tokenizer.encode("Hi", add_special=False), end]
    ids = tokenizer.encode("<s> x", add_special=False, parse_special=True)
    assert ids == [1, *tokenizer.encode(" x", add_special=False)]


def test_the_mask_of_jina_swallows_the_space_before_it() -> None:
    metadata = small.byte_level(pre="jina-v2-code", extra=[("<mask>", CONTROL)])
    assert texts(metadata, "a \t<mask> b", parse_special=True) == ["a", "<mask>", "Ġ", "b"]
    metadata[small.P + "pre"] = "gpt-2"
    assert texts(metadata, "a <mask>", parse_special=True) == ["a", "Ġ", "<mask>"]


def test_the_chat_template_is_at_hand() -> None:
    metadata = small.byte_level()
    assert Tokenizer.from_metadata(metadata).chat_template is None
    metadata["tokenizer.chat_template"] = "{{ messages }}"
    assert Tokenizer.from_metadata(metadata).chat_template == "{{ messages }}"
