"""Tasks of encoders: heads and features, against the pooling's NumPy formulas."""

from __future__ import annotations

import numpy as np
import pytest

from insula import LLM
from insula.errors import ConfigError, ContextOverflowError, UnsupportedError
from insula.tasks import feature_extraction, text_classification, zero_shot_classification
from tasks.oracle_logprobs import softmax

TEXTS = ["the cat sat", "a dog ran on the mat.", "hot sun"]
NAMES = ("bad", "so so", "good")


def head_by_hand(llm: LLM, states: np.ndarray) -> np.ndarray:
    """out(tanh(dense(first token)))."""
    w = llm._engine._weights
    hidden = np.tanh(w["cls.weight"] @ states[0] + w["cls.bias"])
    return w["cls.output.weight"] @ hidden + w["cls.output.bias"]


def test_sentiment_by_a_head(classifier: LLM) -> None:
    assert classifier.gives == "scores"
    states = classifier.hidden_states(TEXTS).states
    shares = softmax(np.stack([head_by_hand(classifier, each) for each in states]))
    found = text_classification(classifier, TEXTS)
    assert [r["label"] for r in found] == [NAMES[i] for i in shares.argmax(1)]
    assert [r["score"] for r in found] == pytest.approx(shares.max(1), abs=1e-6)
    [ranked] = text_classification(classifier, TEXTS[:1], top_k=2)
    order = np.argsort(-shares[0])[:2]
    assert ranked == [
        {"label": NAMES[i], "score": pytest.approx(shares[0, i], abs=1e-6)} for i in order
    ]


@pytest.mark.parametrize("function", ["sigmoid", "none"])
def test_other_functions(classifier: LLM, function: str) -> None:
    raw = classifier.head_scores(TEXTS[:1]).scores[0].astype(np.float64)
    expected = raw if function == "none" else 1 / (1 + np.exp(-raw))
    found = text_classification(classifier, TEXTS[0], top_k=None, function_to_apply=function)
    assert {r["label"]: r["score"] for r in found} == pytest.approx(
        dict(zip(NAMES, expected, strict=True)), abs=1e-6
    )


def test_pairs(classifier: LLM) -> None:
    pair = {"text": TEXTS[0], "text_pair": TEXTS[1]}
    [together] = text_classification(classifier, pair)
    shares = softmax(classifier.head_scores([(TEXTS[0], TEXTS[1])]).scores.astype(np.float64))[0]
    assert together == {
        "label": NAMES[int(shares.argmax())],
        "score": pytest.approx(shares.max(), abs=1e-6),
    }
    assert together["score"] != text_classification(classifier, TEXTS[0])[0]["score"]
    with pytest.raises(ConfigError, match="text and text_pair"):
        text_classification(classifier, [{"text": "a"}])
    with pytest.raises(ConfigError, match=r"inputs\[0\]: found list"):
        text_classification(classifier, [["a", "b"]])
    with pytest.raises(ConfigError, match=r"inputs\[0\].text_pair is empty"):
        text_classification(classifier, {"text": "a", "text_pair": ""})


def test_long_texts(classifier: LLM) -> None:
    long = "the cat " * 100
    with pytest.raises(ContextOverflowError) as error:
        text_classification(classifier, [TEXTS[0], long])
    assert (error.value.needed, error.value.limit) == (202, 160)
    short, cut = text_classification(classifier, [TEXTS[0], long], truncation=True)
    assert "notes" not in short
    assert cut["notes"] == ["the text was cut at what the model reads"]


@pytest.mark.parametrize("multi_label", [False, True])
def test_zero_shot_by_entailment(nli: LLM, multi_label: bool) -> None:
    labels = ["cat", "dog", "sun"]
    pairs = [(text, f"This example is {label}.") for text in TEXTS for label in labels]
    raw = nli.head_scores(pairs).scores.astype(np.float64).reshape(len(TEXTS), len(labels), 3)
    shares = softmax(raw[:, :, 2])
    if multi_label:
        shares = softmax(raw[:, :, [0, 2]])[:, :, 1]
    found = zero_shot_classification(nli, TEXTS, labels, multi_label=multi_label)
    for text, row, result in zip(TEXTS, shares, found, strict=True):
        order = np.argsort(-row)
        assert result["sequence"] == text
        assert result["labels"] == [labels[i] for i in order]
        assert result["scores"] == pytest.approx(row[order], abs=1e-6)


def test_one_label_is_against_contradiction(nli: LLM) -> None:
    one = zero_shot_classification(nli, TEXTS[0], ["cat"])
    both = zero_shot_classification(nli, TEXTS[0], ["cat"], multi_label=True)
    assert one == both
    assert 0 < one["scores"][0] < 1


def test_features_of_tokens(embedder: LLM) -> None:
    found = feature_extraction(embedder, TEXTS)
    assert len(found) == len(TEXTS)
    vectors = embedder.embed(TEXTS).vectors
    for text, states, vector in zip(TEXTS, found, vectors, strict=True):
        [rows] = np.array(states)
        assert len(rows) == len(embedder.tokenize(text))
        mean = rows.mean(axis=0)  # the model declares a mean, normalized
        np.testing.assert_allclose(mean / np.linalg.norm(mean), vector, atol=1e-6)
    assert feature_extraction(embedder, TEXTS[0]) == found[0]
    array = feature_extraction(embedder, TEXTS[0], return_tensors=True)
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, np.array(found[0], dtype=np.float32))


def test_features_of_texts(embedder: LLM) -> None:
    found = feature_extraction(embedder, TEXTS, pool=True)
    np.testing.assert_array_equal(np.array(found, np.float32), embedder.embed(TEXTS).vectors)


def test_features_of_long_texts(embedder: LLM) -> None:
    with pytest.raises(ContextOverflowError, match="202 tokens and the context holds 160"):
        feature_extraction(embedder, "the cat " * 100)
    with pytest.warns(UserWarning, match="cut at what the model reads: 1$"):
        found = feature_extraction(embedder, ["a", "the cat " * 100], truncation=True)
    assert len(found[1][0]) == 160


def test_a_model_that_cannot(embedder: LLM, classifier: LLM, shared_llm: LLM) -> None:
    with pytest.raises(UnsupportedError, match="no head that scores texts"):
        text_classification(embedder, "a")
    with pytest.raises(UnsupportedError, match="NLI"):
        zero_shot_classification(embedder, "a", ["b", "c"])
    with pytest.raises(UnsupportedError, match="bad, so so, good"):
        zero_shot_classification(classifier, "a", ["b", "c"])
    with pytest.raises(UnsupportedError, match="generates text"):
        feature_extraction(shared_llm, "a")
    with pytest.raises(ConfigError, match="labels: is not for this model"):
        text_classification(classifier, "a", labels=["b", "c"])
    with pytest.raises(ConfigError, match="has a head"):
        zero_shot_classification(classifier, "a", ["b", "c"], calibrate=True)
