"""The truth about likelihoods: log-softmax, in NumPy, of the logits of one whole text at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from insula import LLM


def logprobs(llm: LLM, prompt: Sequence[int], continuation: Sequence[int]) -> np.ndarray:
    """ln p of each token of the continuation."""
    logits = llm.logits([*prompt, *continuation]).astype(np.float64)
    rows = logits[len(prompt) - 1 : -1]
    rows = rows - rows.max(axis=1, keepdims=True)
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return rows[np.arange(len(continuation)), list(continuation)]


def softmax(x: np.ndarray) -> np.ndarray:
    p = np.exp(x - x.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)
