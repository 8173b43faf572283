"""A BERT of a few thousand weights with a WordPiece vocabulary, as a Hugging Face folder or GGUF.

Random weights from a seed: its vectors mean nothing, but they are always the same.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from insula.models.convert import convert

WIDTH, HEADS, LAYERS, HIDDEN, CONTEXT = 64, 4, 2, 128, 160
WORDS = ["the", "cat", "dog", "sat", "on", "a", "mat", "ran", "##s", "##ing", "sun", "is", "hot"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
TOKENS = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *WORDS,
    *(letter for letter in LETTERS if letter not in WORDS),
    *(f"##{letter}" for letter in LETTERS if f"##{letter}" not in WORDS),
    *(".", ",", "?", "中"),
]
CLS, SEP = 2, 3


def tokenizer_json() -> dict:
    """BERT's, lower-cased."""
    template = [
        {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
    ]
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": TOKENS[i], "special": True, "normalized": False}
            | {"single_word": False, "lstrip": False, "rstrip": False}
            for i in range(5)
        ],
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "lowercase": True}
        | {"handle_chinese_chars": True, "strip_accents": None},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": template,
            "pair": [
                *template,
                {"Sequence": {"id": "B", "type_id": 1}},
                {"SpecialToken": {"id": "[SEP]", "type_id": 1}},
            ],
            "special_tokens": {
                name: {"id": name, "ids": [i], "tokens": [name]}
                for i, name in ((CLS, "[CLS]"), (SEP, "[SEP]"))
            },
        },
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {token: i for i, token in enumerate(TOKENS)},
        },
    }


def weights(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """BertModel's."""

    def linear(name: str, rows: int, cols: int) -> dict[str, np.ndarray]:
        return {
            f"{name}.weight": rng.standard_normal((rows, cols)) / cols**0.5,
            f"{name}.bias": 0.1 * rng.standard_normal(rows),
        }

    def norm(name: str) -> dict[str, np.ndarray]:
        return {
            f"{name}.weight": 1 + 0.2 * rng.standard_normal(WIDTH),
            f"{name}.bias": 0.1 * rng.standard_normal(WIDTH),
        }

    made = norm("embeddings.LayerNorm")
    for name, rows in (("word", len(TOKENS)), ("position", CONTEXT), ("token_type", 2)):
        made[f"embeddings.{name}_embeddings.weight"] = 0.5 * rng.standard_normal((rows, WIDTH))
    for i in range(LAYERS):
        layer = f"encoder.layer.{i}."
        for name in ("query", "key", "value"):
            made |= linear(f"{layer}attention.self.{name}", WIDTH, WIDTH)
        made |= linear(f"{layer}attention.output.dense", WIDTH, WIDTH)
        made |= norm(f"{layer}attention.output.LayerNorm")
        made |= linear(f"{layer}intermediate.dense", HIDDEN, WIDTH)
        made |= linear(f"{layer}output.dense", WIDTH, HIDDEN)
        made |= norm(f"{layer}output.LayerNorm")
    return made


def save_folder(
    folder: Path,
    *,
    pooling: str | None = "mean",
    normalize: bool = True,
    most: int | None = None,
    labels: tuple[str, ...] | None = None,
    seed: int = 1,
) -> Path:
    """pooling: as sentence-transformers says it, or None. most: max_seq_length. labels: with a
    head, of so many."""
    rng = np.random.default_rng(seed)
    tensors = weights(rng)
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": WIDTH,
        "intermediate_size": HIDDEN,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "max_position_embeddings": CONTEXT,
        "layer_norm_eps": 1e-12,
        "type_vocab_size": 2,
        "vocab_size": len(TOKENS),
    }
    if labels is not None:
        config |= {
            "architectures": ["BertForSequenceClassification"],
            "id2label": {str(i): label for i, label in enumerate(labels)},
        }
        tensors = {f"bert.{name}": values for name, values in tensors.items()}
        tensors["bert.pooler.dense.weight"] = rng.standard_normal((WIDTH, WIDTH)) / WIDTH**0.5
        tensors["bert.pooler.dense.bias"] = 0.1 * rng.standard_normal(WIDTH)
        tensors["classifier.weight"] = 2 * rng.standard_normal((len(labels), WIDTH)) / WIDTH**0.5
        tensors["classifier.bias"] = 0.1 * rng.standard_normal(len(labels))
    folder.mkdir(parents=True)
    save_file(
        {name: values.astype(np.float32) for name, values in tensors.items()},
        folder / "model.safetensors",
    )
    files = {"config.json": config, "tokenizer.json": tokenizer_json()}
    if pooling is not None and labels is None:
        kinds = ("Transformer", "Pooling", "Normalize")[: 3 if normalize else 2]
        files["modules.json"] = [
            {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else ""}
            | {"type": f"sentence_transformers.models.{kind}"}
            for i, kind in enumerate(kinds)
        ]
        (folder / "1_Pooling").mkdir()
        files["1_Pooling/config.json"] = {
            f"pooling_mode_{name}": name == pooling
            for name in ("cls_token", "mean_tokens", "max_tokens", "lasttoken")
        } | {"pooling_mode_mean_tokens": pooling == "mean"}
    if most is not None:
        files["sentence_bert_config.json"] = {"max_seq_length": most}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def write_encoder(path: Path, *, dtype: str = "f32", **options) -> Path:
    """The same as a GGUF file."""
    convert(save_folder(path.parent / f"{path.stem}-folder", **options), path, dtype=dtype)
    return path
