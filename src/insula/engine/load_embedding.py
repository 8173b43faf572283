"""From an opened model that gives hidden states to the engine that runs it.

Owns its sizes: a text is read whole in one step, so the context is as long as a step can be, and
pages are only for one step.
"""

from __future__ import annotations

from insula.engine.context import PAGE_TOKENS, kv_bytes_per_token
from insula.engine.embedding import (
    STEP_KV_BYTES,
    STEP_SEQUENCES,
    STEP_TOKENS,
    EmbeddingEngine,
)
from insula.engine.request import Runner
from insula.errors import ConfigError, ResourceError, UnsupportedError
from insula.models.load import ModelFile

#: The longest text where nobody says, however long the model's context: a step's buffers and
#: attention's work grow with it.
MOST_TOKENS = 8192


def longest_text(model: ModelFile, n_ctx: int | None) -> tuple[int, tuple[str, ...]]:
    """Most tokens of one text, and a note if that is less than the model could read.

    n_ctx: what the caller wants. Raises ConfigError for more than the model has positions.
    """
    trained = model.graph.n_ctx_train
    if n_ctx is not None:
        if n_ctx > trained:
            raise ConfigError(f"n_ctx: found {n_ctx}; allowed: 1 to {trained} with this model")
        return n_ctx, ()
    pooling = model.graph.pooling
    most = min(trained, (pooling.max_tokens if pooling else None) or trained)
    if most <= MOST_TOKENS:
        return most, ()
    note = (
        f"texts may have {MOST_TOKENS} tokens of the {most} that the model knows; n_ctx sets that"
    )
    return MOST_TOKENS, (note,)


def step_size(n_ctx: int, page_bytes: int) -> tuple[int, int]:
    """(rows, pages) of a step."""
    rows = max(STEP_TOKENS, n_ctx)
    sequences = min(STEP_SEQUENCES, max(1, STEP_KV_BYTES // page_bytes))
    return rows, -(-rows // PAGE_TOKENS) + sequences


def page_bytes(model: ModelFile, kv_type: str) -> int:
    """Bytes of a page over all layers."""
    return PAGE_TOKENS * kv_bytes_per_token(model.graph, kv_type)


def check_memory(weights: int, *, beside: int, n_ctx: int, available: int | None) -> None:
    """Raises ResourceError if weights and a step's memory do not fit into what is free."""
    if available is not None and weights + beside > available:
        raise ResourceError(
            f"the model needs {weights >> 20} MiB for its weights and {beside >> 20} MiB for texts "
            f"of {n_ctx} tokens, and {available >> 20} MiB of memory are free; close other "
            "programs, ask for shorter texts (n_ctx), or take a smaller quantization of it"
        )


def check_options(*, speculate: str, adapters: bool) -> None:
    """Raises UnsupportedError for what such models cannot do, or has no meaning without text."""
    if adapters:
        raise UnsupportedError(
            "adapters are not applied to models for embeddings; merge one into the weights: "
            "insula merge",
            backend="native",
        )
    if speculate != "off":
        raise UnsupportedError(
            "this model generates no text, so there is nothing to speculate about", backend="native"
        )


def engine_for(
    model: ModelFile, runner: Runner, *, n_ctx: int, reason: str, notes: tuple[str, ...]
) -> EmbeddingEngine:
    """The engine; a head's tensors are read from the file now."""
    pooling = model.graph.pooling
    head = pooling.head if pooling is not None else None
    names = () if head is None else head.tensors
    return EmbeddingEngine(
        runner,
        model.tokenizer,
        pooling,
        n_ctx=n_ctx,
        n_out=model.graph.n_out,
        weights={n: model.gguf.dequantize(n) for n in names},
        reason=reason,
        notes=notes,
    )
