"""Sentiment and other labels of a text: by a classifier's head, or by label likelihood.

A model with a head knows its labels. A model that generates text is asked, and of the labels given
that one is right which it would rather say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from insula.errors import ConfigError, UnsupportedError
from insula.llm import LLM
from insula.tasks import labels as by_likelihood
from insula.tasks.inputs import choice, listed, sequence, text, whole

QUESTION = "What is the sentiment of this text?\n\nText: {text}"
TEMPLATE = "The sentiment of this text is {}."
#: The label as transformers' default model calls it, and the word that is scored.
SENTIMENTS = {"POSITIVE": "positive", "NEGATIVE": "negative"}


def text_classification(
    llm: LLM,
    inputs: Any,
    *,
    top_k: int | Literal[""] | None = "",
    function_to_apply: str | None = None,
    truncation: bool = False,
    labels: Sequence[str] | Mapping[str, str] | None = None,
    question: str | None = None,
    template: str | None = None,
    length: by_likelihood.Length = "sum",
    calibrate: bool = False,
) -> list[Any]:
    """The label of each text: [{"label", "score"}]; with top_k so many of each text, None: all,
    and for a list of texts a list of such lists.

    For a model with a head: inputs may also be mappings with text and text_pair; truncation cuts
    what is too long, and says so in "notes"; function_to_apply: "softmax", "sigmoid" or "none",
    by default softmax, and sigmoid where there is one label.
    For a model that generates text: labels (default: POSITIVE and NEGATIVE), or the word for each;
    question, with {text}; template, with {} for the word; length and calibrate: see `labels`.
    Raises ConfigError, ContextOverflowError, UnsupportedError.
    """
    if top_k not in ("", None):
        whole(top_k, "top_k")
    given: dict[str, Any] = {"labels": labels, "question": question, "template": template}
    given |= {"length": None if length == "sum" else length, "calibrate": calibrate or None}
    if llm.gives == "scores":
        _refuse(given, "the model has a head with labels of its own")
        texts, one = _texts_or_pairs(inputs)
        names, values, cut = _head(llm, texts, function_to_apply, truncation=truncation)
    elif llm.gives == "text":
        _refuse(
            {"truncation": truncation or None, "function_to_apply": function_to_apply},
            "the model has no head; the labels' likelihoods are given as shares of 1",
        )
        texts, one = listed(inputs)
        words = by_likelihood.named(SENTIMENTS if labels is None else labels, "labels")
        names, cut = tuple(words), ()
        values = by_likelihood.softmax(
            by_likelihood.scores(
                llm,
                texts,
                list(words.values()),
                question=QUESTION if question is None else question,
                template=TEMPLATE if template is None else template,
                length=length,
                calibrate=calibrate,
            )
        )
    else:
        raise UnsupportedError(
            f"{llm.model_info.name} gives {llm.gives} and has no head that scores texts; take a "
            "classifier, or a model that generates text",
            backend=llm.model_info.engine,
        )
    results = [_ranked(names, row, cut=i in cut) for i, row in enumerate(values)]
    if top_k == "":
        return [ranked[0] for ranked in results]
    results = [ranked[:top_k] for ranked in results]
    return results[0] if one else results


def _head(
    llm: LLM, texts: list[Any], function: str | None, *, truncation: bool
) -> tuple[tuple[str, ...], NDArray[np.float64], tuple[int, ...]]:
    """Labels, values, and which texts were cut."""
    told = llm.head_scores(texts, truncate=truncation)
    if function is None:
        function = "sigmoid" if len(told.labels) == 1 else "softmax"
    choice(function, "function_to_apply", ("softmax", "sigmoid", "none"))
    values = told.scores.astype(np.float64)
    if function == "softmax":
        values = by_likelihood.softmax(values)
    elif function == "sigmoid":
        values = 1 / (1 + np.exp(-values))
    return told.labels, values, told.report.truncated


def _texts_or_pairs(inputs: Any) -> tuple[list[Any], bool]:
    one = isinstance(inputs, str | Mapping)
    texts: list[Any] = []
    for i, each in enumerate([inputs] if one else sequence(inputs, "inputs")):
        if not isinstance(each, Mapping):
            texts.append(text(each, f"inputs[{i}]"))
        elif set(each) == {"text", "text_pair"}:
            texts.append(tuple(text(each[k], f"inputs[{i}].{k}") for k in ("text", "text_pair")))
        else:
            raise ConfigError(f"inputs[{i}]: allowed is a text, or a mapping of text and text_pair")
    return texts, one


def _ranked(
    names: Sequence[str], values: NDArray[np.float64], *, cut: bool
) -> list[dict[str, Any]]:
    order = np.argsort(-values, kind="stable")
    ranked: list[dict[str, Any]] = [{"label": names[i], "score": float(values[i])} for i in order]
    if cut:
        for each in ranked:
            each["notes"] = ["the text was cut at what the model reads"]
    return ranked


def _refuse(options: Mapping[str, Any], because: str) -> None:
    for name, value in options.items():
        if value is not None:
            raise ConfigError(f"{name}: is not for this model: {because}")
