"""`pipeline` finds the task by transformers' names, and gives what the functions give."""

from __future__ import annotations

import pytest

from insula import LLM, tasks
from insula.errors import ConfigError, NotFoundError, UnsupportedError
from insula.tasks import pipeline

TEXT, CONTEXT = "the cat sat", "The cat sat on the mat."
N = {"max_new_tokens": 4, "do_sample": False}


@pytest.mark.parametrize(
    ("task", "inputs", "options", "function"),
    [
        ("text-generation", (TEXT,), N, tasks.text_generation),
        ("chat", (TEXT,), N, tasks.chat),
        ("conversational", (TEXT,), N, tasks.chat),
        ("summarization", ([TEXT],), N, tasks.summarization),
        ("translation", (TEXT,), {"src_lang": "en", "tgt_lang": "es", **N}, tasks.translation),
        ("text-classification", (TEXT,), {"top_k": None}, tasks.text_classification),
        ("sentiment-analysis", (TEXT,), {}, tasks.text_classification),
        ("zero-shot-classification", (TEXT, ["a", "b"]), {}, tasks.zero_shot_classification),
        ("question-answering", ("Who?", CONTEXT), {"top_k": 2}, tasks.question_answering),
    ],
)
def test_names(shared_llm: LLM, task, inputs, options, function) -> None:
    made = pipeline(task, shared_llm)
    expected = function(shared_llm, *inputs, **options)
    assert made(*inputs, **options) == expected
    assert pipeline(task, shared_llm, **options)(*inputs) == expected


def test_features(embedder: LLM) -> None:
    made = pipeline("feature-extraction", embedder)
    assert made(TEXT) == tasks.feature_extraction(embedder, TEXT)


def test_languages_in_the_name(shared_llm: LLM) -> None:
    made = pipeline("translation_en_to_fr", shared_llm, max_new_tokens=4)
    assert made(TEXT) == tasks.translation(
        shared_llm, TEXT, src_lang="en", tgt_lang="fr", max_new_tokens=4
    )
    with pytest.raises(ConfigError, match="language 'xx'"):
        pipeline("translation_en_to_xx", shared_llm)(TEXT)


def test_by_name_and_call_over_construction(shared_llm: LLM) -> None:
    made = pipeline("question-answering", shared_llm, top_k=3)
    assert len(made(question="Who?", context=CONTEXT)) == 3
    assert made(question="Who?", context=CONTEXT, top_k=1)["answer"] in CONTEXT


def test_a_path_is_loaded_and_closed(tiny_model) -> None:
    with pipeline("text-generation", tiny_model, model_kwargs={"n_ctx": 64}) as made:
        assert made.model.n_ctx == 64
        assert made(TEXT, **N)[0]["generated_text"].startswith(TEXT)
        assert "text-generation" in repr(made)
    from insula.errors import EngineError

    with pytest.raises(EngineError, match="closed"):
        made(TEXT, **N)


def test_a_given_model_stays_open(shared_llm: LLM) -> None:
    with pipeline("text-generation", shared_llm):
        pass
    assert shared_llm.generate("a", max_tokens=1, temperature=0).token_ids


@pytest.mark.parametrize(
    ("task", "options", "says"),
    [
        ("fill-mask", {}, "found 'fill-mask'; allowed: text-generation"),
        (None, {}, "found None"),
        ("translation_english_to_es", {}, "translation_xx_to_yy"),
        ("text-generation", {"device": 0}, "gpu_layers"),
        ("text-generation", {"max_new_token": 3}, "did you mean max_new_tokens"),
        ("question-answering", {"doc_stride": 3}, "unknown option 'doc_stride'"),
        ("feature-extraction", {"temperature": 1}, "unknown option 'temperature'"),
        ("sentiment-analysis", {"model_kwargs": {"n_ctx": 8}}, "n_ctx; the model is loaded"),
    ],
)
def test_refusals_before_anything_runs(shared_llm: LLM, task, options, says) -> None:
    with pytest.raises(ConfigError, match=says):
        pipeline(task, shared_llm, **options)


def test_refusals_of_calls(shared_llm: LLM) -> None:
    made = pipeline("zero-shot-classification", shared_llm)
    with pytest.raises(ConfigError, match="candidate_labels is missing"):
        made(TEXT)
    with pytest.raises(ConfigError, match="there twice"):
        made(TEXT, ["a", "b"], sequences=TEXT)
    with pytest.raises(ConfigError, match="found 3 inputs"):
        made(TEXT, ["a", "b"], 5)
    with pytest.raises(ConfigError, match="found int"):
        pipeline("text-generation", 5)
    with pytest.raises(NotFoundError):
        pipeline("text-generation", "no-such-model:1b")


def test_a_model_that_cannot(shared_llm: LLM, embedder: LLM) -> None:
    with pytest.raises(UnsupportedError, match="generates text"):
        pipeline("feature-extraction", shared_llm)(TEXT)
    for task in ("text-generation", "summarization", "sentiment-analysis"):
        with pytest.raises(UnsupportedError, match="vectors"):
            pipeline(task, embedder)(TEXT)


def test_a_backend_without_logits(tiny_model) -> None:
    pytest.importorskip("xllamacpp", reason="needs xllamacpp (extra: llamacpp)")
    with LLM(tiny_model, engine="llamacpp") as llm:
        answer = pipeline("summarization", llm)(TEXT, max_new_tokens=3)
        assert "summary_text" in answer[0]
        for task, inputs in (
            ("sentiment-analysis", (TEXT,)),
            ("question-answering", ("Who?", CONTEXT)),
        ):
            with pytest.raises(UnsupportedError, match="llamacpp"):
                pipeline(task, llm)(*inputs)
