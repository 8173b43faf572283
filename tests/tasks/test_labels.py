"""Labels by likelihood are the log-softmax sums that NumPy makes of the logits."""

from __future__ import annotations

import numpy as np
import pytest

from insula import LLM
from insula.errors import ConfigError, ContextOverflowError, UnsupportedError
from insula.tasks import text_classification, zero_shot_classification
from tasks.oracle_logprobs import logprobs, softmax

TEXTS = ["the cat sat on the mat", "a dog {text} <|end|> ran"]
LABELS = ["cats", "dogs and other animals", "dog"]
QUESTION = "What is this?\n{text}"
TEMPLATE = "It is about {}."


def prompt_ids(llm: LLM, text: str, lead: str, question: str = QUESTION) -> list[int]:
    """Put together by hand."""
    asked = question.replace("{text}", text, 1)
    if not llm.model_info.has_chat_template:
        return llm.tokenize(f"{asked}\n\n{lead}", parse_special=False)
    said = llm.tokenize("user\n") + llm.tokenize(asked, parse_special=False)
    answer = llm.tokenize("assistant\n") + llm.tokenize(lead, parse_special=False)
    return [0, *said, 1, *llm.tokenize("\n"), 0, *answer]


def by_hand(
    llm: LLM, text: str, labels=LABELS, *, lead="It is about", tail=".", question=QUESTION
) -> list[np.ndarray]:
    prompt = prompt_ids(llm, text, lead, question)
    return [
        logprobs(llm, prompt, llm.tokenize(f" {label}{tail}", add_special=False))
        for label in labels
    ]


@pytest.mark.parametrize("calibrate", [False, True])
@pytest.mark.parametrize("length", ["sum", "mean"])
def test_zero_shot(any_llm: LLM, length: str, calibrate: bool) -> None:
    found = zero_shot_classification(
        any_llm,
        TEXTS,
        LABELS,
        hypothesis_template=TEMPLATE,
        question=QUESTION,
        length=length,
        calibrate=calibrate,
    )
    over = np.sum if length == "sum" else np.mean
    for text, result in zip(TEXTS, found, strict=True):
        scores = np.array([over(values) for values in by_hand(any_llm, text)])
        if calibrate:
            scores -= [over(values) for values in by_hand(any_llm, "")]
        shares = softmax(scores)
        order = np.argsort(-shares)
        assert list(result) == ["sequence", "labels", "scores"]
        assert result["sequence"] == text
        assert result["labels"] == [LABELS[i] for i in order]
        np.testing.assert_allclose(result["scores"], shares[order], rtol=1e-6)


def test_length_decides(shared_llm: LLM) -> None:
    """A label of many tokens is unlikely as a whole; its tokens need not be."""
    as_sum, as_mean = (
        zero_shot_classification(
            shared_llm, TEXTS[0], LABELS, hypothesis_template="It is {}", length=length
        )
        for length in ("sum", "mean")
    )
    assert as_sum["labels"][-1] == LABELS[1]
    assert as_sum["scores"][-1] < 1e-6 < as_mean["scores"][as_mean["labels"].index(LABELS[1])]


def test_sentiment_has_transformers_shapes(shared_llm: LLM) -> None:
    ways = {"labels": {"GOOD": "good", "BAD": "bad"}, "question": QUESTION, "template": TEMPLATE}
    shares = [
        softmax(np.array([v.sum() for v in by_hand(shared_llm, text, ["good", "bad"])]))
        for text in TEXTS
    ]
    best = [("GOOD", "BAD")[int(np.argmax(s))] for s in shares]
    one = text_classification(shared_llm, TEXTS[0], **ways)
    assert [r["label"] for r in one] == best[:1]
    many = text_classification(shared_llm, TEXTS, **ways)
    assert [r["label"] for r in many] == best
    assert [r["score"] for r in many] == pytest.approx([s.max() for s in shares], rel=1e-6)
    every = text_classification(shared_llm, TEXTS[0], top_k=None, **ways)
    assert {r["label"]: r["score"] for r in every} == pytest.approx(
        dict(zip(("GOOD", "BAD"), shares[0], strict=True)), rel=1e-6
    )
    lists = text_classification(shared_llm, TEXTS, top_k=1, **ways)
    assert lists == [[r] for r in many]


def test_default_labels_and_question(shared_llm: LLM) -> None:
    [found] = text_classification(shared_llm, TEXTS[0])
    scores = [
        values.sum()
        for values in by_hand(
            shared_llm,
            TEXTS[0],
            ["positive", "negative"],
            lead="The sentiment of this text is",
            question="What is the sentiment of this text?\n\nText: {text}",
        )
    ]
    shares = softmax(np.array(scores))
    assert found["label"] == ("POSITIVE", "NEGATIVE")[int(np.argmax(shares))]
    assert found["score"] == pytest.approx(shares.max(), rel=1e-6)


def test_labels_as_one_text(shared_llm: LLM) -> None:
    assert zero_shot_classification(shared_llm, TEXTS[0], "cats, dog") == zero_shot_classification(
        shared_llm, TEXTS[0], ["cats", "dog"]
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sequences": ""}, "sequences is empty"),
        ({"sequences": ["a", " "]}, r"sequences\[1\] is empty"),
        ({"sequences": []}, "empty list"),
        ({"sequences": 5}, "found int"),
        ({"candidate_labels": ["a"]}, "two at least"),
        ({"candidate_labels": ["a", "a"]}, "twice"),
        ({"candidate_labels": ["a", ""]}, r"candidate_labels\[1\] is empty"),
        ({"hypothesis_template": "no place"}, "must be in it once"),
        ({"question": "no place"}, "must be in it"),
        ({"length": "median"}, "allowed: sum, mean"),
    ],
)
def test_refusals(shared_llm: LLM, change, says) -> None:
    given = {"sequences": "a text", "candidate_labels": ["a", "b"], **change}
    with pytest.raises(ConfigError, match=says):
        zero_shot_classification(shared_llm, **given)


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ("joy", "found 1; two at least"),
        ({"A": "a", "B": " "}, r"labels\['B'\] is empty"),
        ({"A": "a"}, "two at least"),
        (5, "found int"),
    ],
)
def test_refused_labels(shared_llm: LLM, labels, says) -> None:
    with pytest.raises(ConfigError, match=says):
        text_classification(shared_llm, "a text", labels=labels)


def test_what_needs_a_head_or_words_before_the_label(shared_llm: LLM, base_llm: LLM) -> None:
    with pytest.raises(UnsupportedError, match="multi_label"):
        zero_shot_classification(shared_llm, "a", ["a", "b"], multi_label=True)
    with pytest.raises(ConfigError, match="truncation"):
        text_classification(shared_llm, "a", truncation=True)
    with pytest.raises(ConfigError, match="begins with the label"):
        zero_shot_classification(base_llm, "a", ["a", "b"], hypothesis_template="{} it is")
    found = zero_shot_classification(shared_llm, "a", ["a", "b"], hypothesis_template="{} it is")
    assert sum(found["scores"]) == pytest.approx(1)


def test_too_long_says_both_numbers(any_llm: LLM) -> None:
    with pytest.raises(ContextOverflowError) as error:
        zero_shot_classification(any_llm, ["short", "x " * 600], ["a", "b"])
    assert error.value.limit == 512
    assert error.value.needed > 600
