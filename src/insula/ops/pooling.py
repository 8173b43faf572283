"""What a sequence's hidden states become: the truth, in NumPy, and fast enough for every engine.

Each sequence is computed by itself, so its numbers do not depend on its neighbours in a batch.
Shapes: T tokens of one sequence, D hidden width, L labels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from insula.ops.graph import Head, Pooling

F32 = NDArray[np.float32]


def wanted_rows(pooling: Pooling, n: int) -> range:
    """Which of a sequence's n rows `pooled` looks at."""
    match pooling.kind:
        case "mean":
            return range(n)
        case "last":
            return range(n - 1, n)
    return range(1)


def pooled(pooling: Pooling, rows: F32, weight: Callable[[str], F32]) -> F32:
    """The vector [D], or the head's scores [L], of one sequence's `wanted_rows`."""
    y: F32 = rows.mean(axis=0, dtype=np.float32)
    if pooling.head is not None:
        return scores(pooling.head, y, weight)
    if pooling.normalize:
        y = y / max(np.sqrt(y @ y), np.float32(1e-12))
    return y


def scores(head: Head, x_D: F32, weight: Callable[[str], F32]) -> F32:
    """out(act(dense(x))) [L]: tanh in BERT's pooler and RoBERTa's head, relu in DistilBERT's."""
    if head.dense is not None:
        x_D = weight(head.dense) @ x_D
        if head.dense_bias is not None:
            x_D = x_D + weight(head.dense_bias)
        x_D = np.tanh(x_D) if head.act == "tanh" else np.maximum(x_D, 0)
    y: F32 = weight(head.out) @ x_D
    return y if head.out_bias is None else y + weight(head.out_bias)
