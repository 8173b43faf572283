"""From a file to an engine that runs it.

Owns the order of things: choose the backend, plan the context, build the runner, and close what
was opened if a step of it fails. The model's name is the caller's affair (`hub.resolve`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from insula.engine.backends import choose
from insula.engine.context import PAGE_TOKENS, kv_bytes_per_token, plan_context
from insula.engine.engine import Engine
from insula.engine.request import Runner, TextEngine
from insula.errors import ConfigError
from insula.types import ModelInfo

#: Taken for the trained context where a file does not say.
UNKNOWN_CONTEXT = 4096


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """An engine, what is known of its model, and how to let go of both."""

    engine: TextEngine
    info: ModelInfo
    close: Callable[[], None]


def load(
    path: Path,
    *,
    name: str | None = None,
    engine: str = "auto",
    n_ctx: int | None = None,
    n_threads: int | None = None,
    kv_type: str = "f16",
    kv_memory: int | None = None,
    available: int | None = None,
    max_running: int = 16,
    kv_bytes_of: Callable[[Mapping[str, Any]], int | None] | None = None,
) -> Loaded:
    """Open a model file and make it ready to run.

    Sizes in bytes; None: chosen. kv_bytes_of: bytes of KV cache per token from a file's
    metadata, asked for models whose graph native does not know.
    Raises ConfigError, UnsupportedError, FormatError, NotFoundError, TokenizerError or
    ResourceError.
    """
    _check_counts(n_threads=n_threads, max_running=max_running)
    choice = choose(path, engine)
    if choice.backend == "llamacpp":
        return _load_llamacpp(
            path,
            name=name or path.name,
            reason=choice.reason,
            n_ctx=n_ctx,
            n_threads=n_threads,
            kv_type=kv_type,
            kv_memory=kv_memory,
            available=available,
            kv_bytes_of=kv_bytes_of,
        )
    from insula.models.load import open_model

    with ExitStack() as stack:
        model = stack.enter_context(open_model(path))
        graph = model.graph
        if choice.backend == "reference":
            kv_type = "f32"
        plan = plan_context(
            n_ctx=n_ctx,
            n_ctx_train=graph.n_ctx_train,
            bytes_per_token=kv_bytes_per_token(graph, kv_type),
            kv_memory=kv_memory,
            available=available,
        )
        runner: Runner
        if choice.backend == "reference":
            from insula.ops.reference import ReferenceRunner

            runner = ReferenceRunner(graph, model.gguf, n_pages=plan.n_pages, page_size=PAGE_TOKENS)
        else:
            from insula.engine.runner import NativeRunner

            runner = NativeRunner(
                graph,
                model.gguf,
                n_pages=plan.n_pages,
                threads=n_threads,
                kv_type="f32" if kv_type == "f32" else "f16",
            )
        stack.callback(runner.close)
        built = Engine(
            runner,
            model.tokenizer,
            n_ctx=plan.n_ctx,
            reason=choice.reason,
            max_running=max_running,
        )
        notes = (*graph.notes, *plan.notes)
        info = ModelInfo(
            name=name or model.summary.name or path.name,
            path=str(path),
            arch=model.arch,
            quantization=model.summary.quantization,
            parameters=model.summary.parameters,
            file_bytes=path.stat().st_size,
            n_vocab=graph.n_vocab,
            n_layers=graph.n_layers,
            n_embd=graph.n_embd,
            n_ctx_train=graph.n_ctx_train,
            n_ctx=plan.n_ctx,
            kv_bytes=plan.kv_bytes,
            kv_type=kv_type,
            engine=built.name,
            engine_reason=choice.reason,
            isa=built.isa,
            threads=built.threads,
            has_chat_template=model.tokenizer.chat_template is not None,
            notes=notes,
        )
        stack.pop_all()

    def close() -> None:
        built.close()
        model.close()

    return Loaded(engine=built, info=info, close=close)


def _load_llamacpp(
    path: Path,
    *,
    name: str,
    reason: str,
    n_ctx: int | None,
    n_threads: int | None,
    kv_type: str,
    kv_memory: int | None,
    available: int | None,
    kv_bytes_of: Callable[[Mapping[str, Any]], int | None] | None,
) -> Loaded:
    from insula import _native
    from insula.engine.backends.llamacpp import LlamaCppEngine
    from insula.formats.gguf import GGUFFile
    from insula.models.load import summarize

    if kv_type != "f16":
        raise ConfigError(f"kv_type: found {kv_type!r}; the llamacpp backend has f16")
    with GGUFFile.open(path) as file:
        summary = summarize(file)
        meta = file.metadata
        layers = _number(meta, f"{summary.arch}.block_count")
        width = _number(meta, f"{summary.arch}.embedding_length")
        # Unknown shape: as if every layer kept full-width keys and values, an upper bound.
        per_token = (kv_bytes_of(meta) if kv_bytes_of else None) or layers * width * 4
    trained = summary.context_length or UNKNOWN_CONTEXT
    plan = plan_context(
        n_ctx=n_ctx,
        n_ctx_train=trained,
        bytes_per_token=per_token,
        kv_memory=kv_memory,
        available=available,
    )
    threads = n_threads or int(_native.cpu_info()["threads"])
    built = LlamaCppEngine(path, n_ctx=plan.n_ctx, threads=threads, reason=reason)
    info = ModelInfo(
        name=name,
        path=str(path),
        arch=summary.arch,
        quantization=summary.quantization,
        parameters=summary.parameters,
        file_bytes=path.stat().st_size,
        n_vocab=built.n_vocab,
        n_layers=layers,
        n_embd=width,
        n_ctx_train=trained,
        n_ctx=plan.n_ctx,
        kv_bytes=plan.n_ctx * per_token,
        kv_type=kv_type,
        engine=built.name,
        engine_reason=reason,
        isa=built.isa,
        threads=built.threads,
        has_chat_template=built.tokenizer.chat_template is not None,
        notes=plan.notes,
    )
    return Loaded(engine=built, info=info, close=built.close)


def _number(meta: Mapping[str, Any], key: str) -> int:
    value = meta.get(key)
    return value if isinstance(value, int) else 0


def _check_counts(*, n_threads: int | None, max_running: int) -> None:
    if n_threads is not None and (isinstance(n_threads, bool) or not 1 <= n_threads <= 1024):
        raise ConfigError(f"n_threads: found {n_threads}; allowed: 1 to 1024")
    if isinstance(max_running, bool) or not 1 <= max_running <= 256:
        raise ConfigError(f"max_running: found {max_running}; allowed: 1 to 256")
