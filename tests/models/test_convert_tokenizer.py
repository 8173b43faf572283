"""Tokenizers on their way to GGUF: what is recognized, and that nothing else is."""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from golden import tiny_tokenizer
from insula.errors import FormatError, UnsupportedError
from insula.models import sentencepiece
from insula.models.convert_tokenizer import PRE_TOKENIZERS, identify, tokenizer_metadata
from insula.tokenizer import Tokenizer

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def save(folder, model, **settings):
    (folder / "tokenizer.json").write_text(json.dumps(model), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def split(regex):
    return {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
            | {"use_regex": False},
        ],
    }


def test_the_tiny_tokenizer_becomes_gpt2(tmp_path):
    tiny_tokenizer.save(tmp_path)
    meta, notes = tokenizer_metadata(tmp_path, {}, n_vocab=tiny_tokenizer.N_VOCAB)
    assert notes == ()
    assert meta["ggml.model"] == "gpt2"
    assert meta["ggml.pre"] == "gpt-2"
    assert meta["ggml.bos_token_id"] == tiny_tokenizer.BOS
    assert meta["ggml.eos_token_id"] == tiny_tokenizer.EOS
    assert meta["ggml.add_bos_token"] is True
    assert meta["ggml.merges"] == tiny_tokenizer.MERGES
    assert len(meta["ggml.tokens"]) == tiny_tokenizer.N_VOCAB
    assert meta["ggml.tokens"][-1] == "[PAD319]"
    assert meta["ggml.token_type"].tolist() == [3, 3] + [1] * 296 + [5] * 22


def test_llama3_is_recognized_whatever_has_no_effect():
    model = tiny_tokenizer.tokenizer_json()
    model["pre_tokenizer"] = split(LLAMA3)
    model["model"]["ignore_merges"] = True
    assert identify(model).name == "llama-bpe"
    model["pre_tokenizer"]["pretokenizers"][1]["trim_offsets"] = False
    assert identify(model).name == "llama-bpe"


def test_qwen_is_recognized_and_its_normalizer_noted(tmp_path):
    model = tiny_tokenizer.tokenizer_json()
    model["pre_tokenizer"] = split(LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"))
    model["normalizer"] = {"type": "NFC"}
    assert identify(model).name == "qwen2"
    _, notes = tokenizer_metadata(save(tmp_path, model), {}, n_vocab=320)
    assert "NFC" in notes[0]


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(pre_tokenizer=split(LLAMA3.replace("{1,3}", "{1,4}"))),
        lambda m: m.update(pre_tokenizer=split(LLAMA3), normalizer={"type": "NFC"}),
        lambda m: m.update(pre_tokenizer=None),
        lambda m: m["pre_tokenizer"].update(add_prefix_space=True),
        lambda m: m["pre_tokenizer"].update(use_regex=False),
        lambda m: m.update(normalizer={"type": "Lowercase"}),
        lambda m: m["model"].update(ignore_merges=True),
        lambda m: m["model"].update(type="Unigram"),
        lambda m: m["model"].update(byte_fallback=True),
        lambda m: m["model"].update(continuing_subword_prefix="##"),
        lambda m: m["model"].update(dropout=0.1),
        lambda m: m.update(post_processor={"type": "BertProcessing"}),
        lambda m: m.update(
            post_processor={
                "type": "TemplateProcessing",
                "single": [
                    {"Sequence": {"id": "A"}},
                    {"SpecialToken": {"id": "<|eos|>"}},
                    {"SpecialToken": {"id": "<|eos|>"}},
                ],
            }
        ),
    ],
)
def test_what_would_tokenize_differently_is_refused(tmp_path, change):
    model = tiny_tokenizer.tokenizer_json()
    change(model)
    with pytest.raises(UnsupportedError):
        tokenizer_metadata(save(tmp_path, model), {}, n_vocab=320)


TRICKY = (
    "The ISLAND's 12345 stones, don't  they?\n\n  x=3.14159;\ttab\r\nwe'LL see ¿qué? ñandú 日本語 "
    "e\u0301clair 🏝️👍🏽 \u00a0nbsp ١٢٣٤ Ⅻ ½ trailing   "
)


@pytest.mark.parametrize("known", PRE_TOKENIZERS, ids=lambda known: known.name)
def test_the_name_means_the_definition(known):
    """Our tokenizer under the name gives what the tokenizers library gives for the definition."""
    tokenizers = pytest.importorskip("tokenizers")
    model = tiny_tokenizer.tokenizer_json()
    model["pre_tokenizer"] = with_trim_offsets(known.definition)
    model["model"]["ignore_merges"] = known.ignore_merges
    oracle = tokenizers.Tokenizer.from_str(json.dumps(model))
    meta, _ = bpe_metadata(model)
    ours = Tokenizer.from_metadata(meta)
    for text in (TRICKY, TRICKY.swapcase(), TRICKY[::-1], " " + TRICKY * 3):
        wanted = oracle.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, add_special=False) == wanted


def with_trim_offsets(definition):
    """A definition as files spell it out."""
    if isinstance(definition, list):
        return [with_trim_offsets(part) for part in definition]
    if not isinstance(definition, Mapping):
        return definition
    full = {key: with_trim_offsets(value) for key, value in definition.items()}
    return full | {"trim_offsets": True} if full.get("type") == "ByteLevel" else full


def bpe_metadata(model):
    with tempfile.TemporaryDirectory() as folder:
        meta, notes = tokenizer_metadata(save(Path(folder), model), {}, n_vocab=320)
    return {f"tokenizer.{key}": value for key, value in meta.items()}, notes


def test_definitions_are_distinct():
    found = [json.dumps([p.definition, p.ignore_merges], sort_keys=True) for p in PRE_TOKENIZERS]
    assert len(set(found)) == len(found)


def test_what_decides_between_two_names_of_one_definition():
    model = tiny_tokenizer.tokenizer_json()
    model["pre_tokenizer"] = split(LLAMA3)
    model["normalizer"] = {"type": "Sequence", "normalizers": []}  # which does nothing
    assert identify(model).name == "dbrx"
    model["model"]["ignore_merges"] = True
    assert identify(model).name == "llama-bpe"


def test_bos_by_the_post_processor(tmp_path):
    model = tiny_tokenizer.tokenizer_json()
    model["post_processor"] = {
        "type": "Sequence",
        "processors": [
            {"type": "ByteLevel"},
            {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<|bos|>"}}, {"Sequence": {"id": "A"}}],
            },
        ],
    }
    meta, _ = tokenizer_metadata(save(tmp_path, model), {}, n_vocab=320)
    assert meta["ggml.add_bos_token"] is True


def test_special_tokens_by_name_before_number(tmp_path):
    model = tiny_tokenizer.tokenizer_json()
    config = {"bos_token_id": 7, "eos_token_id": [9, 10], "pad_token_id": 10**6}
    folder = save(tmp_path, model, bos_token={"content": "<|eos|>"})
    meta, _ = tokenizer_metadata(folder, config, n_vocab=320)
    assert meta["ggml.bos_token_id"] == tiny_tokenizer.EOS
    assert meta["ggml.eos_token_id"] == 9
    assert "ggml.padding_token_id" not in meta
    with pytest.raises(FormatError, match="nowhere"):
        tokenizer_metadata(save(tmp_path, model, bos_token="nowhere"), config, n_vocab=320)


@pytest.mark.parametrize(
    ("template", "found"),
    [
        ("{{ x }}", "{{ x }}"),
        ([{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}], "d"),
        ([{"name": "tool", "template": "t"}], None),
        (None, None),
    ],
)
def test_chat_template(tmp_path, template, found):
    folder = save(tmp_path, tiny_tokenizer.tokenizer_json(), chat_template=template)
    meta, _ = tokenizer_metadata(folder, {}, n_vocab=320)
    assert meta.get("chat_template") == found
    (tmp_path / "chat_template.jinja").write_text("alone")
    meta, _ = tokenizer_metadata(folder, {}, n_vocab=320)
    assert meta["chat_template"] == "alone"


def test_more_ids_than_embedding_rows(tmp_path):
    tiny_tokenizer.save(tmp_path)
    with pytest.raises(FormatError, match="297"):
        tokenizer_metadata(tmp_path, {}, n_vocab=200)


def test_a_token_after_the_text(tmp_path):
    """As Qwen3 Embedding has it: that token ends a text, whatever the config calls the end."""
    model = tiny_tokenizer.tokenizer_json()
    single = [{"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "<|bos|>"}}]
    model["post_processor"] = {"type": "TemplateProcessing", "single": single}
    (tmp_path / "tokenizer.json").write_text(json.dumps(model))
    meta, _ = tokenizer_metadata(tmp_path, {"eos_token_id": tiny_tokenizer.EOS}, n_vocab=320)
    assert meta["ggml.eos_token_id"] == tiny_tokenizer.BOS
    assert (meta["ggml.add_eos_token"], meta["ggml.add_bos_token"]) == (True, False)


def test_a_folder_without_tokenizer(tmp_path):
    with pytest.raises(UnsupportedError, match=r"tokenizer\.json"):
        tokenizer_metadata(tmp_path, {}, n_vocab=320)


# -- SentencePiece ------------------------------------------------------------------------------


def field(number, kind, payload):
    return bytes([number << 3 | kind]) + payload


def message(number, payload):
    return field(number, 2, bytes([len(payload)]) + payload)


def piece(text, score, kind=1):
    encoded = text.encode()
    return message(
        1,
        field(1, 2, bytes([len(encoded)]) + encoded)
        + field(2, 5, struct.pack("<f", score))
        + field(3, 0, bytes([kind])),
    )


PIECES = piece("<unk>", 0, 2) + piece("<s>", 0, 3) + piece("<0x0A>", 0, 6) + piece("▁a", -1.5)
BPE = message(2, field(3, 0, b"\x02"))
NO_PREFIX = message(3, field(3, 0, b"\x00") + field(4, 0, b"\x00"))


def test_sentencepiece_model(tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(PIECES + BPE + NO_PREFIX)
    meta, _ = tokenizer_metadata(tmp_path, {"bos_token_id": 1}, n_vocab=6)
    assert meta["ggml.model"] == "llama"
    assert meta["ggml.tokens"] == ["<unk>", "<s>", "<0x0A>", "▁a", "[PAD4]", "[PAD5]"]
    assert meta["ggml.token_type"].tolist() == [2, 3, 6, 1, 5, 5]
    np.testing.assert_array_equal(meta["ggml.scores"], np.float32([0, 0, 0, -1.5, -1000, -1000]))
    assert meta["ggml.add_space_prefix"] is False
    assert meta["ggml.bos_token_id"] == 1


def test_special_by_tokenizer_json_stays_special(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(PIECES + piece("<turn>", 0, 4) + BPE + NO_PREFIX)
    added = [{"id": 4, "content": "<turn>", "special": True}]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": added, "model": {}}))
    meta, _ = tokenizer_metadata(tmp_path, {}, n_vocab=5)
    assert meta["ggml.token_type"].tolist() == [2, 3, 6, 1, 3]


@pytest.mark.parametrize(
    "spec",
    [
        b"",  # extra whitespace is removed unless said otherwise
        field(2, 2, b"\x02xx") + field(4, 0, b"\x00"),
        field(4, 0, b"\x00") + field(5, 0, b"\x00"),
    ],
)
def test_a_model_that_normalizes_is_refused(tmp_path, spec):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(PIECES + BPE + message(3, spec))
    with pytest.raises(UnsupportedError, match="normalizes"):
        sentencepiece.read(path)


def test_a_unigram_model_is_refused(tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(PIECES)
    with pytest.raises(UnsupportedError, match="type 1"):
        sentencepiece.read(path)


def test_every_cut_of_a_sentencepiece_file_is_an_error_or_a_model(tmp_path):
    path = tmp_path / "tokenizer.model"
    whole = PIECES + BPE + NO_PREFIX
    for n in range(len(whole)):
        path.write_bytes(whole[:n])
        try:
            sentencepiece.read(path)
        except (FormatError, UnsupportedError):
            continue


def test_every_flipped_bit_too(tmp_path):
    path = tmp_path / "tokenizer.model"
    whole = PIECES + BPE + NO_PREFIX
    for at in range(8 * len(whole)):
        broken = bytearray(whole)
        broken[at // 8] ^= 1 << at % 8
        path.write_bytes(broken)
        try:
            found = sentencepiece.read(path)
        except (FormatError, UnsupportedError):
            continue
        assert 1 <= len(found.pieces) <= 4


def test_what_the_sentencepiece_library_writes(tmp_path):
    trainer = pytest.importorskip("sentencepiece")
    text = tmp_path / "text.txt"
    text.write_text("en un lugar de la mancha de cuyo nombre\n" * 50)
    trainer.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "tokenizer"), vocab_size=300,
        model_type="bpe", byte_fallback=True, hard_vocab_limit=False, minloglevel=2,
        normalization_rule_name="identity", remove_extra_whitespaces=False,
    )  # fmt: skip
    oracle = trainer.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    found = sentencepiece.read(tmp_path / "tokenizer.model")
    assert [p.text for p in found.pieces] == [oracle.id_to_piece(i) for i in range(len(oracle))]
    assert [p.score for p in found.pieces] == [oracle.get_score(i) for i in range(len(oracle))]
    assert found.add_dummy_prefix
    meta, _ = tokenizer_metadata(tmp_path, {}, n_vocab=len(oracle))
    ours = Tokenizer.from_metadata({f"tokenizer.{key}": value for key, value in meta.items()})
    for sentence in ("en un lugar de la mancha", "mancha 日本 de  cuyo", " x", "lugar lugar\n"):
        wanted = oracle.encode(sentence)
        assert ours.encode(sentence, add_special=False) == wanted
    assert [i for i, p in enumerate(found.pieces) if p.type == 6] == [
        i for i in range(len(oracle)) if oracle.is_byte(i)
    ]
