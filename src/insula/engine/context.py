"""How many tokens the context holds, and how many pages of KV cache stand behind it.

Owns the arithmetic and the default: a context is chosen for the memory it takes, never simply
as long as the model was trained for. Reads nothing of the machine; the caller says what memory
there is.
"""

from __future__ import annotations

from dataclasses import dataclass

from insula.errors import ConfigError, ResourceError
from insula.ops.graph import Experts, Graph

#: Activations, code, vocabulary and Python, in bytes; measured with the default model.
OVERHEAD = 100_000_000

PAGE_TOKENS = 64
MAX_CONTEXT = 1 << 24

#: Without a word from the user the KV cache may take this much, or a quarter of what the weights
#: leave of free memory.
DEFAULT_KV_MEMORY = 1 << 30


@dataclass(frozen=True, kw_only=True)
class ContextPlan:
    """n_ctx tokens at most per request, n_pages for all, kv_bytes in full use."""

    n_ctx: int
    n_pages: int
    kv_bytes: int
    notes: tuple[str, ...]


def kv_bytes_per_token(graph: Graph, kv_type: str) -> int:
    """Keys and values of one position over all layers, in bytes."""
    return sum(slot.kv_heads * head_bytes(slot.head_dim, kv_type) for slot in graph.slots)


def head_bytes(head_dim: int, kv_type: str) -> int:
    """One head's key and value of one position, values in sixteens. int8: with a float16 scale per
    32 dimensions of each."""
    values = -(-head_dim // 16) * 16
    if kv_type == "int8":
        return -(-head_dim // 4) * 4 + values + 2 * 2 * -(-head_dim // 32)
    return {"f16": 2, "f32": 4}[kv_type] * (head_dim + values)


def step_bytes(graph: Graph, rows: int) -> int:
    """What a step of so many rows writes: each buffer, and a product's input in three forms."""
    widest = max(graph.buffers.values())
    return rows * (4 * sum(graph.buffers.values()) + 7 * widest)


def expert_bytes(graph: Graph, rows: int) -> int:
    """What a step's experts write beside that: the rows of each expert that a row uses."""
    most = 0
    for op in graph.ops:
        if isinstance(op, Experts):
            pairs = rows * op.used + 15 * min(op.experts, rows * op.used)
            src, dst = graph.buffers[op.src], graph.buffers[op.dst]
            most = max(most, pairs * (7 * max(src, op.width) + 4 * (op.width + dst)))
    return most


def plan_context(
    *,
    n_ctx: int | None,
    n_ctx_train: int,
    bytes_per_token: int,
    kv_memory: int | None,
    available: int | None,
    weights: int = 0,
) -> ContextPlan:
    """Choose.

    n_ctx: what the caller wants (None: chosen). kv_memory: bytes the caller allows for the
    cache. available: free memory, if known. weights: what the model itself will take of that.
    Pages beyond one full context keep prefixes of earlier requests and serve several at once;
    there are up to as many again within the budget.
    Raises ConfigError (numbers out of range), ResourceError (it cannot fit in memory).
    """
    if n_ctx is not None and (isinstance(n_ctx, bool) or not 1 <= n_ctx <= MAX_CONTEXT):
        raise ConfigError(f"n_ctx: found {n_ctx}; allowed: 1 to {MAX_CONTEXT}")
    left = None if available is None else available - weights - OVERHEAD
    if left is not None and left <= 0:
        advice = "close other programs, or take a smaller model or a smaller quantization of it"
        if weights:  # mapped ones are not counted
            advice += ', or weights="mmap" with the native engine, which reads them as needed'
        raise ResourceError(
            f"the model needs {_size(weights)} for its weights and {_size(OVERHEAD)} beside them, "
            f"and {_size(available or 0)} of memory are free; {advice}"
        )
    budget = kv_memory
    if budget is None:
        budget = DEFAULT_KV_MEMORY
        if left is not None:
            budget = min(budget, left // 4)
    page_bytes = PAGE_TOKENS * bytes_per_token
    fitting = budget // max(1, page_bytes)
    notes: list[str] = []
    if n_ctx is None:
        # One page is for copying a prefix while a full context is in use.
        n_ctx = min(n_ctx_train, max(0, fitting - 1) * PAGE_TOKENS)
        if n_ctx < min(n_ctx_train, PAGE_TOKENS):
            raise ResourceError(
                f"the KV cache may take {_size(budget)} and {PAGE_TOKENS} tokens of this model "
                f"need {_size(2 * page_bytes)}; free some memory or allow more (kv_memory)"
            )
        if n_ctx < n_ctx_train:
            notes.append(
                f"context of {n_ctx} tokens, chosen for {_size(budget)} of KV cache; the model "
                f"was trained for {n_ctx_train} (n_ctx or kv_memory change it)"
            )
    elif n_ctx > n_ctx_train:
        notes.append(
            f"context of {n_ctx} tokens, as asked for; the model was trained for {n_ctx_train}"
        )
    needed = -(-n_ctx // PAGE_TOKENS) + 1
    if kv_memory is not None and needed > fitting:
        raise ConfigError(
            f"kv_memory: {_size(kv_memory)} hold {max(0, fitting - 1) * PAGE_TOKENS} tokens of "
            f"this model and n_ctx is {n_ctx}; {_size(needed * page_bytes)} are needed"
        )
    if left is not None and needed * page_bytes > left:
        raise ResourceError(
            f"a context of {n_ctx} tokens needs {_size(needed * page_bytes)} for its KV cache, "
            f"and of {_size(available or 0)} of free memory the model leaves {_size(left)}; at "
            f"most {max(0, left // page_bytes - 1) * PAGE_TOKENS} tokens would fit (n_ctx), more "
            "with kv_type int8"
        )
    n_pages = max(needed, min(2 * needed, fitting))
    return ContextPlan(
        n_ctx=n_ctx, n_pages=n_pages, kv_bytes=n_pages * page_bytes, notes=tuple(notes)
    )


def _size(n: int) -> str:
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if n >= 1 << power:
            return f"{n / (1 << power):.1f} {unit}"
    return f"{n} bytes"
