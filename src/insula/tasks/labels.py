"""Labels by likelihood: which of several hypotheses about a text a model would rather say.

    score(k) = ln p(hypothesis k | prompt with the text) [- ln p(hypothesis k | prompt without it)]

The sum is over the tokens of a hypothesis from the label on; what comes before it is the same for
all and belongs to the prompt. What is taken off is how likely the model finds the hypothesis
anyway: calibration against an empty text, as domain-conditional pointwise mutual information
(arXiv:2104.08315) and contextual calibration (arXiv:2102.09690) have it. Length: a sum makes long
labels unlikely, as they are; "mean" divides by the number of tokens (arXiv:2005.14165, section
2.4), which favours long words whose end follows from their beginning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from insula.errors import ConfigError
from insula.llm import LLM
from insula.tasks.inputs import choice, text
from insula.tasks.inputs import labels as listed_labels
from insula.tasks.prompts import asked

Length = Literal["sum", "mean"]


def scores(
    llm: LLM,
    texts: Sequence[str],
    labels: Sequence[str],
    *,
    question: str,
    template: str,
    length: Length = "sum",
    calibrate: bool = False,
) -> NDArray[np.float64]:
    """[n, L] of n texts and L labels, in the order given.

    question: put to the model, with {text} in it. template: the hypothesis, with {} for the label.
    Raises ConfigError, ContextOverflowError, UnsupportedError (the backend gives no logits).
    """
    choice(length, "length", ("sum", "mean"))
    if "{text}" not in question:
        raise ConfigError(f"question: found {question!r}; {{text}} must be in it")
    lead, tail = hypothesis(template)
    if not lead and not llm.model_info.has_chat_template:
        raise ConfigError(
            f"the template {template!r} begins with the label; without a chat template the model "
            "needs words before it"
        )
    before, _, after = question.partition("{text}")
    prompts = [asked(llm, before + each + after, lead) for each in texts]
    if calibrate:
        prompts.append(asked(llm, before + after, lead))
    told = llm.logprobs(
        [prompt.ids for prompt in prompts],
        [[prompt.answer(llm, label + tail) for label in labels] for prompt in prompts],
    )
    over = np.sum if length == "sum" else np.mean
    found = np.array([[over(tokens) for tokens in row] for row in told])
    return found[:-1] - found[-1] if calibrate else found


def hypothesis(template: Any) -> tuple[str, str]:
    """What stands before and after the label."""
    if not isinstance(template, str) or template.count("{}") != 1:
        raise ConfigError(f"the template is {template!r}; {{}} must be in it once, for the label")
    before, _, after = template.partition("{}")
    return before.rstrip(), after


def softmax(scores_NL: NDArray[np.float64]) -> NDArray[np.float64]:
    """Along the last axis."""
    p = np.exp(scores_NL - scores_NL.max(axis=-1, keepdims=True))
    shares: NDArray[np.float64] = p / p.sum(axis=-1, keepdims=True)
    return shares


def named(labels: Any, name: str) -> dict[str, str]:
    """The word that stands for each of two labels or more: itself, or what a mapping says."""
    if isinstance(labels, Mapping):
        words = {label: text(word, f"{name}[{label!r}]") for label, word in labels.items()}
    else:
        words = {label: label for label in listed_labels(labels, name)}
    if len(words) < 2:
        raise ConfigError(f"{name}: found {len(words)}; two at least, or there is no choice")
    return words
