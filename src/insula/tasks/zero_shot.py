"""Zero-shot classification: which of any labels fits a text, which nobody has trained it for.

A model with a head that was trained for inference between texts is asked, as transformers does,
whether the text entails each hypothesis. A model that generates text says how likely it finds each
hypothesis (`labels`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from insula.errors import ConfigError, UnsupportedError
from insula.llm import LLM
from insula.tasks import labels as by_likelihood
from insula.tasks.inputs import labels as listed_labels
from insula.tasks.inputs import listed

#: transformers' template, for heads; and what a model that generates text is asked.
NLI_TEMPLATE = "This example is {}."
QUESTION = "What is the topic of this text?\n\nText: {text}"
TEMPLATE = "The topic of this text is {}."


def zero_shot_classification(
    llm: LLM,
    sequences: str | Sequence[str],
    candidate_labels: str | Sequence[str],
    *,
    hypothesis_template: str | None = None,
    multi_label: bool = False,
    question: str | None = None,
    length: by_likelihood.Length = "sum",
    calibrate: bool = False,
) -> dict[str, Any] | list[dict[str, Any]]:
    """{"sequence", "labels", "scores"} of each text, the likeliest label first.

    candidate_labels: a list, or one text with commas. hypothesis_template: with {} for the label.
    multi_label: each label by itself, entailment against contradiction; needs a head.
    question, length, calibrate: for models that generate text, see `labels`.
    Raises ConfigError, ContextOverflowError, UnsupportedError.
    """
    texts, one = listed(sequences, "sequences")
    names = listed_labels(candidate_labels, "candidate_labels")
    if llm.gives == "scores":
        if question is not None or length != "sum" or calibrate:
            raise ConfigError(
                "question, length, calibrate: are for models that generate text, and this one "
                "has a head"
            )
        template = NLI_TEMPLATE if hypothesis_template is None else hypothesis_template
        values = _entailed(llm, texts, names, template, multi_label=multi_label)
    elif llm.gives == "text":
        if multi_label:
            raise UnsupportedError(
                "multi_label needs a model with a head for inference between texts: likelihoods "
                "say which label fits better than another, not whether one fits",
                backend=llm.model_info.engine,
            )
        if len(names) < 2:
            raise ConfigError("candidate_labels: found 1; two at least, or there is no choice")
        values = by_likelihood.softmax(
            by_likelihood.scores(
                llm,
                texts,
                names,
                question=QUESTION if question is None else question,
                template=TEMPLATE if hypothesis_template is None else hypothesis_template,
                length=length,
                calibrate=calibrate,
            )
        )
    else:
        raise UnsupportedError(
            f"{llm.model_info.name} gives {llm.gives} and has no head that scores texts; take a "
            "model trained for inference between texts (NLI), or one that generates text",
            backend=llm.model_info.engine,
        )
    results = []
    for text, row in zip(texts, values, strict=True):
        order = np.argsort(-row, kind="stable")
        results.append(
            {
                "sequence": text,
                "labels": [names[i] for i in order],
                "scores": [float(row[i]) for i in order],
            }
        )
    return results[0] if one else results


def _entailed(
    llm: LLM, texts: list[str], names: list[str], template: str, *, multi_label: bool
) -> NDArray[np.float64]:
    """[n, L]: of each text the labels' shares of entailment; with multi_label, or of one label,
    each one's share of entailment and contradiction."""
    by_likelihood.hypothesis(template)
    told = llm.head_scores(
        [(text, template.replace("{}", name)) for text in texts for name in names]
    )
    entails = [i for i, name in enumerate(told.labels) if name.lower().startswith("entail")]
    if len(entails) != 1 or len(told.labels) < 2:
        raise UnsupportedError(
            f"the model's head has the labels {', '.join(told.labels)}; zero-shot classification "
            "needs one that begins with 'entail' and another, as a model trained for inference "
            "between texts (NLI) has",
            backend=llm.model_info.engine,
        )
    entailment = entails[0]
    values = told.scores.astype(np.float64).reshape(len(texts), len(names), -1)
    if not multi_label and len(names) > 1:
        return by_likelihood.softmax(values[:, :, entailment])
    contradiction = -1 if entailment == 0 else 0  # where transformers looks for it
    return by_likelihood.softmax(values[:, :, [contradiction, entailment]])[:, :, 1]
