"""The same checkpoints in transformers' pipelines and in ours: the same numbers and words."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from insula.models.convert import convert
from insula.models.export import export
from insula.tasks import pipeline
from tiny_encoder import save_folder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in ("torch", "transformers")),
        reason="needs torch and transformers (extra: train)",
    ),
]

TEXTS = ["the cat sat", "a dog ran on the mat, is the sun hot?", "xyz 中 sun"]
#: Keys and values in half precision cost up to 5e-4 of a state.
EXACT = {"kv_type": "f32"}


def theirs(task: str, folder: Path) -> Any:
    import transformers

    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
    )
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    config = transformers.AutoConfig.from_pretrained(folder)
    config.label2id = {label: i for i, label in config.id2label.items()}
    model = {
        "text-classification": transformers.AutoModelForSequenceClassification,
        "zero-shot-classification": transformers.AutoModelForSequenceClassification,
        "feature-extraction": transformers.AutoModel,
    }[task].from_pretrained(folder, config=config)
    return transformers.pipeline(task, model=model, tokenizer=tokenizer)


def as_file(folder: Path) -> Path:
    convert(folder, folder.with_suffix(".gguf"), dtype="f32")
    return folder.with_suffix(".gguf")


def test_text_classification(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "head", labels=("bad", "so so", "good"))
    original = theirs("text-classification", folder)
    with pipeline("text-classification", as_file(folder), model_kwargs=EXACT) as ours:
        for options in ({}, {"top_k": None}, {"top_k": 2, "function_to_apply": "sigmoid"}):
            for inputs in (TEXTS, TEXTS[:1], TEXTS[0], {"text": TEXTS[0], "text_pair": TEXTS[1]}):
                expected, found = original(inputs, **options), ours(inputs, **options)
                if isinstance(expected, dict):  # of one mapping it gives no list
                    expected = [expected]
                assert same(found, expected), (options, inputs, found, expected)


@pytest.mark.parametrize("multi_label", [False, True])
def test_zero_shot_classification(tmp_path: Path, multi_label: bool) -> None:
    folder = save_folder(tmp_path / "nli", labels=("contradiction", "neutral", "entailment"))
    original = theirs("zero-shot-classification", folder)
    options = {"candidate_labels": ["cat", "dog", "sun"], "multi_label": multi_label}
    with pipeline("zero-shot-classification", as_file(folder), model_kwargs=EXACT) as ours:
        for inputs in (TEXTS, TEXTS[0]):
            assert same(ours(inputs, **options), original(inputs, **options))


def test_feature_extraction(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "embed")
    original = theirs("feature-extraction", folder)
    with pipeline("feature-extraction", as_file(folder), model_kwargs=EXACT) as ours:
        for found, expected in zip(ours(TEXTS), original(TEXTS), strict=True):
            np.testing.assert_allclose(np.array(found), np.array(expected), rtol=0, atol=1e-4)


def test_text_generation(tiny_model: Path, tmp_path: Path) -> None:
    import transformers

    export(tiny_model, tmp_path / "folder")
    original = transformers.pipeline("text-generation", model=str(tmp_path / "folder"))
    prompts = ["the cat", "a dog ran"]
    chat = [{"role": "user", "content": "the sun"}]
    options = {"max_new_tokens": 8, "do_sample": False}
    with pipeline("text-generation", tiny_model, model_kwargs=EXACT) as ours:
        for inputs in (prompts, prompts[0], chat, [chat, chat]):
            assert ours(inputs, **options) == original(inputs, **options)
        short = {"return_full_text": False, **options}
        assert ours(prompts, **short) == original(prompts, **short)


def same(found: Any, expected: Any) -> bool:
    """The same shape, words, and numbers within 1e-4."""
    if isinstance(expected, float):
        return isinstance(found, float) and abs(found - expected) < 1e-4
    if isinstance(expected, dict):
        return list(found) == list(expected) and all(same(found[k], expected[k]) for k in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    return found == expected
