"""An importance matrix from a text: the model reads it, and the kernels sum what products read.

Owns: the cutting of the text into windows, each read from an empty cache, and the way from the
native sums to `models.importance`. What is summed are the inputs of every Linear, in float32 and
before they are rounded to int8; the output matrix, which works once a token and not once a row of
its inputs, is left out, as llama.cpp leaves it out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from insula.engine.runner import PAGE_TOKENS, NativeRunner
from insula.errors import ConfigError
from insula.models.importance import Importance
from insula.models.load import ModelFile, open_model
from insula.ops.graph import Linear

#: Tokens that are read together, as llama.cpp's tool has it, and most windows by default.
WINDOW, MOST_WINDOWS = 512, 200

_ROWS = re.compile(r"\[\d+:\d+\]$")


def windows(model: ModelFile, text: str, *, window: int = WINDOW) -> list[list[int]]:
    """The text's ids in windows, each with the begin token if the model wants one.

    A last window of one token is left out. Raises ConfigError for a text of fewer than two tokens.
    """
    ids = model.tokenizer.encode(text, add_special=False)
    head = [model.tokenizer.bos_id] if model.tokenizer.add_bos else []
    start = [token for token in head if token is not None]
    step = window - len(start)
    parts = [start + ids[i : i + step] for i in range(0, len(ids), step)]
    parts = [part for part in parts if len(part) >= 2]
    if not parts:
        raise ConfigError(f"the text has {len(ids)} tokens; at least two are needed")
    return parts


def measure_importance(
    path: str | Path,
    text: str,
    *,
    name: str = "",
    window: int = WINDOW,
    most: int | None = MOST_WINDOWS,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Importance:
    """What the model in `path` makes of `text`, in windows of `window` tokens, `most` at most.

    name: the text's, which the matrix keeps. The same text gives the same sums with any number of
    threads. Raises what `open_model` and `NativeRunner` raise, and ConfigError.
    """
    with open_model(path) as model:
        window = min(window, model.graph.n_ctx_train)
        every = windows(model, text, window=window)
        parts = every[:most]
        runner = NativeRunner(
            model.graph,
            model.gguf,
            n_pages=-(-window // PAGE_TOKENS),
            threads=threads,
            max_rows=window,
        )
    try:
        runner.record(on=True)
        for done, ids in enumerate(parts, 1):
            read(runner, ids)
            if progress is not None:
                progress(done, len(parts))
        return _collected(runner, name, len(parts), len(every) - len(parts), window)
    finally:
        runner.close()


def read(runner: NativeRunner, ids: Sequence[int]) -> None:
    """Run one sequence from position 0, without logits."""
    n = len(ids)
    table = np.arange(runner.n_pages, dtype=np.int32)
    runner.step(ids, np.arange(n), np.zeros(n, np.int32), [table], np.zeros(0, np.int32))


def _collected(
    runner: NativeRunner, name: str, chunks: int, left_out: int, window: int
) -> Importance:
    squares, counts = {}, {}
    for op in runner.graph.ops:
        # Rows of one tensor may be several weights; they read the same input.
        tensor = _ROWS.sub("", op.weight) if isinstance(op, Linear) else None
        if isinstance(op, Linear) and tensor is not None and tensor not in squares:
            sums, rows = runner.recorded(op.weight)
            squares[tensor] = sums[None]
            counts[tensor] = np.array([float(rows)])
    return Importance(
        squares=squares,
        counts=counts,
        datasets=(name,) if name else (),
        chunks=chunks,
        chunk_tokens=window,
        left_out=left_out,
    )
