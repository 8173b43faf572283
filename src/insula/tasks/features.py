"""Features: what a model makes of a text, as numbers for something else to learn from.

transformers gives the states of all tokens; here one may have the vector of the whole text too,
pooled and normalized as the model declares, which is what searching and comparing need.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from insula.llm import LLM
from insula.tasks.inputs import listed
from insula.types import EmbeddingReport


def feature_extraction(
    llm: LLM,
    inputs: str | Sequence[str],
    *,
    pool: bool = False,
    return_tensors: bool = False,
    truncation: bool = False,
) -> Any:
    """Of one text the states of its tokens, as a nested list [1][T][D], those around the text
    included; of a list, a list of such lists.

    pool: the text's one vector [D] in place of the states of its tokens.
    return_tensors: NumPy arrays float32 in place of lists. truncation: cut texts that are longer
    than the model reads, with a warning that says which; otherwise they are an error.
    Raises ConfigError, ContextOverflowError, UnsupportedError (the model generates text).
    """
    texts, one = listed(inputs)
    if pool:
        embedded = llm.embed(texts, truncate=truncation)
        _warn(embedded.report)
        found = list(embedded.vectors)
    else:
        told = llm.hidden_states(texts, truncate=truncation)
        _warn(told.report)
        found = [states[None] for states in told.states]
    results = found if return_tensors else [each.tolist() for each in found]
    return results[0] if one else results


def _warn(report: EmbeddingReport) -> None:
    """Numbers alone have no place for a note."""
    if report.truncated:
        which = ", ".join(str(i) for i in report.truncated)
        warnings.warn(f"inputs cut at what the model reads: {which}", UserWarning, stacklevel=4)
