"""Question answering: the span of a context that the model is likeliest to answer with.

The score is the probability that the model, asked, says exactly this span and nothing after it.
Only spans are candidates, so that no answer is made up; what the model would rather have said shows
in how little probability all spans have together. The search is a uniform-cost search over the
tree of spans: a longer answer is never likelier than its beginning, so the first k whole answers
that are likelier than every beginning still open are the k likeliest of all.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from insula.errors import ConfigError
from insula.llm import LLM
from insula.tasks.inputs import listed, sequence, whole
from insula.tasks.prompts import Asked, asked, check_generates
from insula.tasks.spans import Node, tree

QUESTION = "Answer the question with words of the text.\n\nText: {context}\n\nQuestion: {question}"
LEAD = "The answer is:"
#: Beginnings of answers that run in one step, and that are looked at in all.
WIDTH, MOST = 16, 1024


@dataclass(frozen=True, kw_only=True)
class _Found:
    logprob: float
    span: tuple[int, int]


def question_answering(
    llm: LLM,
    question: str | Sequence[str] | Mapping[str, str] | Sequence[Mapping[str, str]] | None = None,
    context: str | Sequence[str] | None = None,
    *,
    top_k: int = 1,
    max_answer_len: int = 15,
    prompt: str = QUESTION,
    lead: str = LEAD,
) -> dict[str, Any] | list[Any]:
    """Answers to a question about a context, or to several: {"answer", "start", "end", "score"},
    with context[start:end] == answer; several answers of each with top_k > 1, the likeliest first.

    question, context: texts; lists of them (one context may serve all questions); or mappings with
        both keys.
    max_answer_len: most words of an answer.
    prompt: how they are put to the model; lead: how its answer begins.
    A result whose search ended early, so that a likelier span may exist, has "notes".
    Raises ConfigError, ContextOverflowError, UnsupportedError (no model that generates text).
    """
    check_generates(llm)
    for name in ("{context}", "{question}"):
        if name not in prompt:
            raise ConfigError(f"prompt: found {prompt!r}; {name} must be in it")
    if not lead.strip() and not llm.model_info.has_chat_template:
        raise ConfigError("lead is empty; without a chat template the answer needs a beginning")
    whole(top_k, "top_k")
    whole(max_answer_len, "max_answer_len")
    pairs, one = _pairs(question, context)
    results = []
    for about, text in pairs:
        put = _put(llm, prompt, about, text, lead.strip())
        results.append(_answers(llm, put, text, top_k=top_k, most_words=max_answer_len))
    shaped = [answers[0] if top_k == 1 else answers for answers in results]
    return shaped[0] if one else shaped


def _put(llm: LLM, prompt: str, question: str, context: str, lead: str) -> Asked:
    before, _, after = prompt.partition("{context}")
    text = before.replace("{question}", question) + context + after.replace("{question}", question)
    return asked(llm, text, lead)


def _answers(
    llm: LLM, put: Asked, context: str, *, top_k: int, most_words: int
) -> list[dict[str, Any]]:
    root = tree(context, lambda words: put.answer(llm, words), most_words=most_words)
    if not root.children:
        raise ConfigError("the context has no words; an answer is one of its spans")
    found, ended_early = _search(llm, put.ids, root, top_k)
    answers = []
    for each in found:
        start, end = each.span
        answer: dict[str, Any] = {
            "answer": context[start:end],
            "start": start,
            "end": end,
            "score": float(np.exp(each.logprob)),
        }
        if ended_early:
            answer["notes"] = [
                f"the search ended after {MOST} beginnings of answers; a likelier span may exist"
            ]
        answers.append(answer)
    return answers


def _search(llm: LLM, prompt: tuple[int, ...], root: Node, top_k: int) -> tuple[list[_Found], bool]:
    """The likeliest answers, best first, and whether the search was given up."""
    ends = _ends(llm)
    found: list[_Found] = []
    serial = 0  # equally likely: the one met first
    open_nodes: list[tuple[float, int, Node]] = [(0.0, serial, root)]
    looked = 0
    while True:
        found = sorted(found, key=lambda each: -each.logprob)[:top_k]
        bound = found[-1].logprob if len(found) == top_k else -np.inf
        batch: list[tuple[float, Node]] = []
        while open_nodes and len(batch) < WIDTH and -open_nodes[0][0] > bound:
            cost, _, node = heapq.heappop(open_nodes)
            batch.append((-cost, node))
        if not batch or (looked >= MOST and found):
            return found, bool(batch)
        looked += len(batch)
        told = llm.logprobs(
            [(*prompt, *node.ids) for _, node in batch],
            [
                [(token,) for token in node.children] + [(end,) for end in ends if node.span]
                for _, node in batch
            ],
        )
        for (logprob, node), row in zip(batch, told, strict=True):
            values = np.concatenate(row)
            for child, value in zip(node.children.values(), values, strict=False):
                serial += 1
                heapq.heappush(open_nodes, (-(logprob + float(value)), serial, child))
            if node.span is not None:
                over = float(np.logaddexp.reduce(values[len(node.children) :]))
                found.append(_Found(logprob=logprob + over, span=node.span))


def _ends(llm: LLM) -> list[int]:
    """Tokens after which an answer is over: those that end a text, and single tokens that end a
    sentence or a line."""
    ends = set(llm.tokenizer.eog_ids)
    for mark in (".", ".\n", "\n", "\n\n"):
        ids = llm.continuation_ids("a", mark, parse_special=False)
        if len(ids) == 1:
            ends.add(ids[0])
    return sorted(ends)


def _pairs(question: Any, context: Any) -> tuple[list[tuple[str, str]], bool]:
    """(question, context) of each, and whether it was one."""
    if context is None:
        one = isinstance(question, Mapping)
        asked_for = [question] if one else sequence(question, "inputs")
        pairs = []
        for i, each in enumerate(asked_for):
            if not isinstance(each, Mapping) or set(each) != {"question", "context"}:
                raise ConfigError(
                    f"inputs[{i}]: allowed is a mapping with the keys question and context"
                )
            pairs.append((each["question"], each["context"]))
        questions, _ = listed([about for about, _ in pairs], "question")
        contexts, _ = listed([text for _, text in pairs], "context")
        return list(zip(questions, contexts, strict=True)), one
    questions, one = listed(question, "question")
    contexts, alone = listed(context, "context")
    if alone:
        contexts *= len(questions)
    if len(questions) != len(contexts):
        raise ConfigError(
            f"found {len(questions)} questions and {len(contexts)} contexts; allowed: one context "
            "for all, or one for each"
        )
    return list(zip(questions, contexts, strict=True)), one
