"""The answer found is the likeliest of all spans, as trying every one of them says."""

from __future__ import annotations

import numpy as np
import pytest

from insula import LLM
from insula.errors import ConfigError, ContextOverflowError, UnsupportedError
from insula.tasks import answers as module
from insula.tasks import question_answering
from insula.tasks.spans import WORD, tree
from tasks.oracle_logprobs import logprobs

CONTEXT = "The cat sat on the mat.\nIn 1,912 the dog's owner paid $5 (or 40%) for it."
QUESTION = "Who sat?"


def spans(text: str, most: int) -> list[tuple[int, int]]:
    words = [m.span() for m in WORD.finditer(text)]
    return [
        (start, end)
        for i, (start, _) in enumerate(words)
        for _, end in words[i : i + most]
        if "\n" not in text[start:end]
    ]


def by_hand(llm: LLM, most: int) -> dict[str, float]:
    """Every span's probability: of its tokens, and of an end after them."""
    text = f"Answer the question with words of the text.\n\nText: {CONTEXT}\n\nQuestion: {QUESTION}"
    if llm.model_info.has_chat_template:
        prompt = list(llm.chat_prompt([{"role": "user", "content": text}]).ids)
        prompt += llm.tokenize("The answer is:", parse_special=False)
    else:
        prompt = llm.tokenize(f"{text}\n\nThe answer is:", parse_special=False)
    ends = {1}
    ends |= {ids[0] for mark in (".", "\n") if len(ids := llm.tokenize(mark)) == 1}
    found = {}
    for start, end in spans(CONTEXT, most):
        answer = CONTEXT[start:end]
        ids = llm.tokenize(f" {answer}", parse_special=False)
        over = [np.exp(logprobs(llm, [*prompt, *ids], [last])[0]) for last in ends]
        found[answer] = np.exp(logprobs(llm, prompt, ids).sum()) * sum(over)
    return found


def test_the_likeliest_of_all_spans(any_llm: LLM) -> None:
    truth = by_hand(any_llm, 2)
    best = sorted(truth, key=lambda answer: -truth[answer])
    found = question_answering(any_llm, QUESTION, CONTEXT, top_k=5, max_answer_len=2)
    assert [each["answer"] for each in found] == best[:5]
    for each in found:
        assert CONTEXT[each["start"] : each["end"]] == each["answer"]
        assert each["score"] == pytest.approx(truth[each["answer"]], rel=1e-6)
        assert "notes" not in each
    one = question_answering(any_llm, QUESTION, CONTEXT, max_answer_len=2)
    assert one == found[0]
    assert list(one) == ["answer", "start", "end", "score"]


def test_words() -> None:
    words = [m.group() for m in WORD.finditer(CONTEXT)]
    assert words[5:] == "mat In 1,912 the dog's owner paid $5 or 40% for it".split()
    assert [m.group() for m in WORD.finditer("東京 is big")] == ["東", "京", "is", "big"]
    assert [m.group() for m in WORD.finditer("¿Dónde está Ávila?")] == ["Dónde", "está", "Ávila"]


def test_the_tree_has_each_span_once() -> None:
    root = tree("a b\nb a b", lambda text: tuple(text.encode()), most_words=2)
    found = {}

    def walk(node):
        if node.span is not None:
            found[bytes(node.ids).decode()] = node.span
        for child in node.children.values():
            walk(child)

    walk(root)
    assert found == {"a": (0, 1), "a b": (0, 3), "b": (2, 3), "b a": (4, 7)}


def test_many_questions(shared_llm: LLM) -> None:
    one = question_answering(shared_llm, QUESTION, CONTEXT)
    other = question_answering(shared_llm, "Where?", CONTEXT)
    assert question_answering(shared_llm, [QUESTION, "Where?"], CONTEXT) == [one, other]
    mapping = {"question": QUESTION, "context": CONTEXT}
    assert question_answering(shared_llm, mapping) == one
    assert question_answering(shared_llm, [mapping]) == [one]


def test_a_search_that_ends_early_says_so(shared_llm: LLM, monkeypatch) -> None:
    monkeypatch.setattr(module, "MOST", 40)
    found = question_answering(shared_llm, QUESTION, CONTEXT, top_k=30)
    assert found
    assert all("a likelier span may exist" in each["notes"][0] for each in found)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"question": " "}, "question is empty"),
        ({"context": ""}, "context is empty"),
        ({"context": "... !"}, "no words"),
        ({"question": ["a", "b"], "context": ["a", "b", "c"]}, "2 questions and 3 contexts"),
        ({"question": ["a"], "context": None}, "keys question and context"),
        ({"top_k": 0}, "top_k"),
        ({"max_answer_len": True}, "max_answer_len"),
        ({"prompt": "{question}"}, "{context} must be in it"),
    ],
)
def test_refusals(shared_llm: LLM, change, says) -> None:
    with pytest.raises(ConfigError, match=says):
        question_answering(shared_llm, **{"question": QUESTION, "context": CONTEXT, **change})


def test_too_long_and_no_text(shared_llm: LLM, classifier: LLM) -> None:
    with pytest.raises(ContextOverflowError) as error:
        question_answering(shared_llm, QUESTION, "x y " * 400)
    assert error.value.limit == 512 < error.value.needed
    with pytest.raises(UnsupportedError, match="gives scores and no text"):
        question_answering(classifier, QUESTION, CONTEXT)
