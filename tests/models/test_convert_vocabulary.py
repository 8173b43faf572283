"""Vocabularies that are not byte-level BPE keep their ids on the way to GGUF."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer as HuggingFace
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

from insula import LLM
from insula.errors import TokenizerError, UnsupportedError
from insula.models.convert import convert
from insula.models.convert_tokenizer import tokenizer_metadata
from insula.tokenizer import Tokenizer
from tiny_encoder import TOKENS, tokenizer_json

BOOK = "En un lugar de la Mancha, de cuyo nombre no quiero acordarme,\nno ha mucho tiempo… ¡Ñu!"


def ours(folder, definition, n_vocab):
    (folder / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    meta, notes = tokenizer_metadata(folder, {}, n_vocab=n_vocab)
    assert notes == ()
    return Tokenizer.from_metadata({f"tokenizer.{key}": value for key, value in meta.items()})


@pytest.mark.parametrize("strip", [None, False])
def test_wordpiece(tmp_path, strip):
    definition = tokenizer_json()
    definition["normalizer"]["strip_accents"] = strip
    tokenizer = ours(tmp_path, definition, len(TOKENS))
    theirs = HuggingFace.from_str(json.dumps(definition))
    for text in ("The cats sat, running?", "Ünïcödé sún", "中cat中", "x" * 101, "", "½ cat\x00s"):
        assert tokenizer.encode(text) == theirs.encode(text).ids, text
    assert tokenizer.model == "wordpiece"


def test_a_wordpiece_that_is_not_berts_is_refused(tmp_path):
    definition = tokenizer_json()
    definition["pre_tokenizer"] = {"type": "Whitespace"}
    with pytest.raises(UnsupportedError, match="Whitespace"):
        ours(tmp_path, definition, len(TOKENS))
    definition = tokenizer_json()
    definition["post_processor"] = None
    with pytest.raises(UnsupportedError, match="around a text"):
        ours(tmp_path, definition, len(TOKENS))


def test_unigram(tmp_path):
    theirs = HuggingFace(models.Unigram())
    theirs.normalizer = normalizers.Sequence([normalizers.Replace(_regex(" {2,}"), " ")])
    theirs.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=90, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], unk_token="<unk>"
    )
    theirs.train_from_iterator([BOOK] * 4, trainer)
    theirs.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    definition = json.loads(theirs.to_str())
    tokenizer = ours(tmp_path, definition, theirs.get_vocab_size())
    for text in (BOOK, "Mancha", "un  lugar   de", "cuyo nombre", "Quijote y 中"):
        assert tokenizer.encode(text) == theirs.encode(text).ids, text
    assert (tokenizer.model, tokenizer.bos_id, tokenizer.eos_id) == ("unigram", 0, 2)


def test_white_space_that_only_separates_words(tmp_path):
    """XLM-R's older files cut at white space before Metaspace: runs of it count once."""
    definition = {
        "added_tokens": [
            {"id": i, "content": t, "special": True, "normalized": False}
            | {"single_word": False, "lstrip": False, "rstrip": False}
            for i, t in enumerate(("<s>", "</s>", "<unk>"))
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "WhitespaceSplit"},
                {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always"},
            ],
        },
        "post_processor": {"type": "RobertaProcessing", "cls": ["<s>", 0], "sep": ["</s>", 1]},
        "model": {"type": "Unigram", "unk_id": 2, "byte_fallback": False}
        | {"vocab": [["<s>", 0], ["</s>", 0], ["<unk>", 0], ["\u2581", -2], ["\u2581a", -3]]},
    }
    with pytest.raises(UnsupportedError, match="white space"):
        ours(tmp_path, definition, 5)


def test_a_damaged_table_is_named(tmp_path):
    definition = {
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": "%%%"},
        "pre_tokenizer": {"type": "Metaspace"},
        "model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]]},
    }
    with pytest.raises(ValueError, match="normalizer is damaged"):
        ours(tmp_path, definition, 2)
    table = base64.b64encode(b"xx").decode()
    definition["normalizer"] = {"type": "Lowercase", "precompiled_charsmap": table}
    with pytest.raises(UnsupportedError, match="Lowercase"):
        ours(tmp_path, definition, 2)


def letters(kind):
    """A book's letters as a vocabulary, as nanoGPT's character models have them."""
    vocab = {letter: i for i, letter in enumerate(sorted(set(BOOK)))}
    definition = {"added_tokens": [], "normalizer": None, "post_processor": None}
    if kind == "WordLevel":
        split = {"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated"}
        return definition | {
            "pre_tokenizer": split | {"invert": False},
            "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
        }
    return definition | {
        "pre_tokenizer": None,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    }


@pytest.mark.parametrize("kind", ["WordLevel", "BPE"])
def test_single_characters(tmp_path, kind):
    definition = letters(kind)
    vocab = definition["model"]["vocab"]
    tokenizer = ours(tmp_path, definition, len(vocab))
    assert tokenizer.encode(BOOK) == [vocab[letter] for letter in BOOK]
    assert tokenizer.decode(tokenizer.encode(BOOK)) == BOOK
    assert tokenizer.encode("  un") == [vocab[letter] for letter in "  un"]
    assert tokenizer.decode([vocab[" "], vocab["u"]]) == " u"
    with pytest.raises(TokenizerError):
        tokenizer.encode("中")


def test_single_characters_that_are_not_cut_are_refused(tmp_path):
    definition = letters("WordLevel")
    definition["pre_tokenizer"] = {"type": "Whitespace"}
    with pytest.raises(UnsupportedError, match="does not cut"):
        ours(tmp_path, definition, 60)


def test_a_model_of_a_books_letters_can_be_served(tmp_path):
    """GPT-2's shape with 3 layers, no biases that count, one token per letter."""
    definition = letters("BPE")
    n, width, layers, context = len(definition["model"]["vocab"]), 24, 2, 64
    rng = np.random.default_rng(3)
    tensors = {
        "transformer.wte.weight": rng.standard_normal((n, width)),
        "transformer.wpe.weight": 0.1 * rng.standard_normal((context, width)),
        "transformer.ln_f.weight": np.ones(width),
        "transformer.ln_f.bias": np.zeros(width),
    }
    for i in range(layers):
        for name, shape in {
            "attn.c_attn": (width, 3 * width),
            "attn.c_proj": (width, width),
            "mlp.c_fc": (width, 4 * width),
            "mlp.c_proj": (4 * width, width),
        }.items():
            tensors[f"transformer.h.{i}.{name}.weight"] = rng.standard_normal(shape) / 8
            tensors[f"transformer.h.{i}.{name}.bias"] = np.zeros(shape[1])
        for name in ("ln_1", "ln_2"):
            tensors[f"transformer.h.{i}.{name}.weight"] = np.ones(width)
            tensors[f"transformer.h.{i}.{name}.bias"] = np.zeros(width)
        tensors[f"transformer.h.{i}.attn.bias"] = np.tril(np.ones((1, 1, context, context)))
    save_file(
        {k: np.ascontiguousarray(v, np.float32) for k, v in tensors.items()},
        tmp_path / "model.safetensors",
    )
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "n_ctx": context,
        "n_embd": width,
        "n_head": 4,
        "n_layer": layers,
        "n_positions": context,
        "tie_word_embeddings": True,
        "vocab_size": n,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    convert(tmp_path, tmp_path / "letters.gguf")
    with LLM(tmp_path / "letters.gguf") as llm:
        assert llm.model_info.arch == "gpt2"
        done = llm.generate("En un lugar", max_tokens=12, temperature=0)
        assert len(done.text) == len(done.token_ids) == 12
        assert set(done.text) <= set(BOOK)
        again = llm.generate("En un lugar" + done.text[:5], max_tokens=7, temperature=0)
        assert again.text == done.text[5:]


def _regex(pattern):
    from tokenizers import Regex

    return Regex(pattern)


def ranked(space):
    """A SentencePiece BPE as transformers writes it into tokenizer.json, every way to a piece among
    the merges."""
    pieces = ["\u2581", *"theisland", "th", "the", "\u2581the", "is", "an", "land"]
    pieces = list(dict.fromkeys(pieces))
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *pieces]
    vocab = {token: i for i, token in enumerate(tokens)}
    merges = [
        [piece[:cut], piece[cut:]]
        for piece in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    prepend = {"type": "Prepend", "prepend": "\u2581"}
    metaspace = {"type": "Metaspace", "replacement": "\u2581", "split": False}
    return {
        "added_tokens": [
            {"id": i, "content": tokens[i], "special": True, "normalized": False}
            | {"single_word": False, "lstrip": False, "rstrip": False}
            for i in range(3)
        ],
        "normalizer": {
            "first": None,
            "prepend": {"type": "Sequence", "normalizers": [prepend, replace]},
            "none": replace,
        }[space],
        "pre_tokenizer": metaspace | {"prepend_scheme": "first"} if space == "first" else None,
        "post_processor": None,
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": merges,
        },
    }


@pytest.mark.parametrize("space", ["first", "prepend", "none"])
def test_sentencepiece_bpe_without_its_model_file(tmp_path, space):
    definition = ranked(space)
    n_vocab = len(definition["model"]["vocab"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    meta, notes = tokenizer_metadata(tmp_path, {}, n_vocab=n_vocab)
    assert bool(notes) == (space == "first")
    tokenizer = Tokenizer.from_metadata({f"tokenizer.{key}": value for key, value in meta.items()})
    theirs = HuggingFace.from_str(json.dumps(definition))
    for text in ("the island", "the  the", "thethe land ", "x the ñ", "is\nthe"):
        wanted = theirs.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text, add_special=False) == wanted, text
    assert tokenizer.model == "spm"


def test_ranks_that_are_no_scores_are_refused(tmp_path):
    definition = ranked("none")
    definition["model"]["merges"].remove(["t", "h"])
    with pytest.raises(UnsupportedError, match="never merges"):
        ours(tmp_path, definition, 300)
    definition = ranked("none")
    merges = definition["model"]["merges"]
    merges.append(merges[0])
    with pytest.raises(UnsupportedError, match="one score"):
        ours(tmp_path, definition, 300)
    definition = ranked("none") | {"normalizer": {"type": "NFC"}}
    with pytest.raises(UnsupportedError, match="spaces otherwise"):
        ours(tmp_path, definition, 300)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["LlamaTokenizer", "GemmaTokenizer"])
def test_what_transformers_saves_of_a_sentencepiece_model(tmp_path, name):
    """It writes a tokenizer.json and no tokenizer.model."""
    sentencepiece = pytest.importorskip("sentencepiece")
    transformers = pytest.importorskip("transformers")
    text = (Path(__file__).parents[2] / "docs" / "decisions.md").read_text(encoding="utf-8")
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=900,
        model_type="bpe",
        byte_fallback=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        pad_id=-1,
        user_defined_symbols=["<pad>", "<eos>", "<bos>"] if name.startswith("Gemma") else [],
        minloglevel=2,
    )
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "tokenizer.model").exists()
    meta, _ = tokenizer_metadata(tmp_path / "saved", {}, n_vocab=len(theirs))
    tokenizer = Tokenizer.from_metadata({f"tokenizer.{key}": value for key, value in meta.items()})
    lines = [line.strip() for line in text.splitlines() if line.strip()][:200]
    assert len(lines) > 20
    for line in [*lines, BOOK, "中 ñ 🦙"]:
        wanted = theirs(line, add_special_tokens=False)["input_ids"]
        assert tokenizer.encode(line, add_special=False) == wanted, line
