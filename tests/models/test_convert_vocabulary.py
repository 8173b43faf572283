"""Vocabularies that are not byte-level BPE keep their ids on the way to GGUF."""

from __future__ import annotations

import base64
import json

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
