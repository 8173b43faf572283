"""From a file to an engine that runs it.

Owns the order of things: choose the backend, plan the context, build the runner, and close what
was opened if a step of it fails. The model's name is the caller's affair (`hub.resolve`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from insula.config import KV_TYPES, WEIGHTS
from insula.engine.backends import Choice, choose, require
from insula.engine.backends.llamacpp_devices import gpu_obstacle, gpus
from insula.engine.context import (
    MAX_CONTEXT,
    PAGE_TOKENS,
    ContextPlan,
    expert_bytes,
    kv_bytes_per_token,
    plan_context,
    step_bytes,
)
from insula.engine.disk_cache import DiskCache
from insula.engine.engine import Engine
from insula.engine.page_files import PageFiles
from insula.engine.payoff import Payoff
from insula.engine.request import Runner, TextEngine
from insula.engine.speculation import Draft, NGram, Speculator, check_same_vocabulary
from insula.errors import ConfigError, TokenizerError, UnsupportedError
from insula.models.registry import build_graph
from insula.ops.graph import Output
from insula.types import ModelInfo

if TYPE_CHECKING:
    from insula.engine.runner import NativeRunner
    from insula.models.adapters import Adapter
    from insula.models.load import ModelFile

#: Taken for the trained context where a file does not say.
UNKNOWN_CONTEXT = 4096
MAX_THREADS, MAX_RUNNING, MAX_LAYERS = 1024, 256, 9999

#: Most tokens guessed at once where nobody says; fewer where fewer pay.
NGRAM_TOKENS, DRAFT_TOKENS = 12, 5
MAX_DRAFT_TOKENS = 32

#: What pages on disk may take where nobody says.
CACHE_DIR_BYTES = 4 << 30
#: Memory that is taken at the start for pages that may come from disk.
READY_BYTES = 256 << 20
#: Changes when the same program and tensors give other keys and values, or a page another order.
PAGE_VERSION = 2
NO_DISK_CACHE = "nothing is kept on disk: the {backend} engine has no cache_dir"


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """An engine, what is known of its model, and how to let go of both."""

    engine: TextEngine
    info: ModelInfo
    close: Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to run a model; None: chosen. Sizes in bytes.

    kv_memory: what the KV cache may take. available: the memory that is free. max_running: most
    requests that advance together. kv_bytes_of: bytes of KV cache per token from a file's
    metadata, asked for models that native does not know.
    speculate: off, ngram, or the name of the draft model, whose file is `draft`. draft_tokens: most
    tokens guessed at once per request.
    cache_dir: where the prefix cache is kept for the next run, cache_dir_bytes at most.
    weights: memory, or mmap: mapped from a packed file below `home`.
    adapters: low-rank adapters by name; own_adapter: the one that requests go through which name
    none.
    gpu_layers: layers on a GPU, -1 for all; None: the backend's default, 0: none.
    mmproj: the model's projector, for images and sound.
    """

    n_ctx: int | None = None
    n_threads: int | None = None
    kv_type: str = "f16"
    kv_memory: int | None = None
    available: int | None = None
    max_running: int = 16
    kv_bytes_of: Callable[[Mapping[str, Any]], int | None] | None = None
    speculate: str = "off"
    draft: Path | None = None
    draft_tokens: int | None = None
    cache_dir: Path | None = None
    cache_dir_bytes: int = CACHE_DIR_BYTES
    weights: str = "memory"
    home: Path | None = None
    adapters: Mapping[str, Path] = field(default_factory=dict)
    own_adapter: str | None = None
    gpu_layers: int | None = None
    mmproj: Path | None = None

    def plan(self, *, n_ctx_train: int, bytes_per_token: int, weights: int = 0) -> ContextPlan:
        return plan_context(
            n_ctx=self.n_ctx,
            n_ctx_train=n_ctx_train,
            bytes_per_token=bytes_per_token,
            kv_memory=self.kv_memory,
            available=self.available,
            weights=weights,
        )


def load(path: Path, *, name: str, engine: str = "auto", options: Options) -> Loaded:
    """Open a model file and make it ready to run.

    Raises ConfigError, UnsupportedError, FormatError, NotFoundError, TokenizerError or
    ResourceError.
    """
    options = _checked(options)
    engine, reason, gpu_notes = _for_gpu(engine, options)
    if options.mmproj is not None:
        if engine == "auto":
            engine, reason = "llamacpp", "mmproj was given, and native takes text alone"
        require(engine, "vision")
    if engine != "llamacpp":
        from insula.models.load import open_model

        with ExitStack() as stack:
            try:
                model = stack.enter_context(open_model(path))
            except (UnsupportedError, TokenizerError):
                pass  # choose() says why, or which backend takes it instead
            else:
                choice = choose(path, engine, opened_arch=model.arch)
                if choice.backend != "llamacpp":
                    loaded = _own(model, path, name, choice, options, stack)
                    info = replace(loaded.info, notes=(*loaded.info.notes, *gpu_notes))
                    return replace(loaded, info=info)
    choice = choose(path, engine)
    if reason is not None:
        choice = replace(choice, reason=reason)
    return _llamacpp(path, name, choice, options, gpu_notes)


def _for_gpu(engine: str, options: Options) -> tuple[str, str | None, tuple[str, ...]]:
    """The engine if layers are to be on a GPU, why it is that one, and what must be said.

    Only "auto" may run without the GPU that was asked for, and says so. Raises UnsupportedError.
    """
    if not options.gpu_layers:
        return engine, None, ()
    if engine in ("native", "reference"):
        require(engine, "gpu")
    obstacle = gpu_obstacle()
    if obstacle is None:
        asked = f"gpu_layers={options.gpu_layers} was asked for, and native runs on the CPU"
        return "llamacpp", asked if engine == "auto" else None, ()
    if engine == "auto":
        return engine, None, (f"gpu_layers={options.gpu_layers} has no effect: {obstacle}",)
    raise UnsupportedError(
        f"the {engine} backend cannot take gpu_layers={options.gpu_layers}: {obstacle}",
        backend=engine,
    )


def _own(
    model: ModelFile, path: Path, name: str, choice: Choice, options: Options, stack: ExitStack
) -> Loaded:
    """The native or the reference engine. `stack` closes the model if this fails."""
    if isinstance(model.graph.ops[-1], Output):
        return _embedding(model, path, name, choice, options, stack)
    graph = model.graph
    # The reference rounds nothing, whatever was asked for.
    kv_type = "f32" if choice.backend == "reference" else options.kv_type
    draft = _open_draft(options, model, stack)
    per_token = kv_bytes_per_token(graph, kv_type)
    if draft is not None:  # it keeps as many tokens as the model
        per_token += kv_bytes_per_token(draft.graph, kv_type)
    mapped = options.weights == "mmap" and choice.backend == "native"
    weights = sum(_weights(m, choice.backend) for m in (model, draft) if m is not None)
    from insula.engine.runner import MAX_ROWS

    adapters = _adapters(model, choice.backend, options)
    plan = options.plan(
        n_ctx_train=graph.n_ctx_train,
        bytes_per_token=per_token,
        weights=(0 if mapped else weights)
        + sum(adapter.nbytes for adapter in adapters)
        + expert_bytes(graph, MAX_ROWS),
    )
    notes = [*graph.notes, *plan.notes]
    if graph.n_ctx_switch is not None:
        model = replace(model, graph=build_graph(model.gguf, n_ctx=plan.n_ctx))
        if plan.n_ctx > graph.n_ctx_switch:
            notes.append(
                f"the context is longer than {graph.n_ctx_switch} tokens: the model turns by its "
                "frequencies for long contexts, for short texts too"
            )
    if choice.backend == "reference":
        notes += [
            f"the reference engine has no {name}"
            for name, asked in (
                ("weights=mmap", options.weights == "mmap"),
                (f"kv_type {options.kv_type}", options.kv_type == "int8"),
            )
            if asked
        ]
    if mapped and options.available is not None and weights > options.available:
        notes.append(
            f"the weights take {weights >> 20} MiB and {options.available >> 20} MiB of memory "
            "are free: they are read from disk again and again, which is slow"
        )
    runner = _runner(model, choice.backend, plan.n_pages, kv_type, options, adapters=adapters)
    stack.callback(runner.close)
    speculator: Speculator | None = None
    if draft is not None:
        draft_runner = _runner(draft, choice.backend, plan.n_pages, kv_type, options)
        speculator = Draft(draft_runner, name=options.speculate)
        stack.callback(speculator.close)
    elif options.speculate == "ngram":
        speculator = NGram()
    payoff = None
    if speculator is not None:
        most = options.draft_tokens or (NGRAM_TOKENS if draft is None else DRAFT_TOKENS)
        payoff = Payoff(speculator, most=most)
    disk, disk_notes = _disk_cache(model, runner, choice.backend, kv_type, options)
    if choice.backend == "native":
        # Everything is packed: the files' pages need not stay in memory beside that.
        for packed in (model, draft):
            if packed is not None:
                packed.close()
    engine = Engine(
        runner,
        model.tokenizer,
        n_ctx=plan.n_ctx,
        reason=choice.reason,
        max_running=options.max_running,
        payoff=payoff,
        disk=disk,
        adapters={adapter.name: adapter.digest for adapter in adapters},
        own_adapter=options.own_adapter,
    )
    info = ModelInfo(
        name=name,
        path=str(path),
        arch=model.arch,
        quantization=model.summary.quantization,
        parameters=model.summary.parameters,
        file_bytes=model.gguf.size,
        n_vocab=graph.n_vocab,
        n_layers=graph.n_layers,
        n_embd=graph.n_embd,
        n_ctx_train=graph.n_ctx_train,
        n_ctx=plan.n_ctx,
        kv_bytes=plan.kv_bytes,
        kv_type=kv_type,
        engine=engine.name,
        engine_reason=choice.reason,
        isa=engine.isa,
        threads=engine.threads,
        has_chat_template=model.tokenizer.chat_template is not None,
        speculation=options.speculate,
        adapters=tuple(adapter.name for adapter in adapters),
        notes=(*notes, *disk_notes),
    )
    stack.pop_all()

    def close() -> None:
        engine.close()
        model.close()
        if draft is not None:
            draft.close()

    return Loaded(engine=engine, info=info, close=close)


def _embedding(
    model: ModelFile, path: Path, name: str, choice: Choice, options: Options, stack: ExitStack
) -> Loaded:
    """An engine for vectors and scores. `stack` closes the model if this fails."""
    from insula.engine import load_embedding as sizes

    sizes.check_options(speculate=options.speculate, adapters=bool(options.adapters))
    kv_type = "f32" if choice.backend == "reference" else options.kv_type
    n_ctx, notes = sizes.longest_text(model, options.n_ctx)
    page_bytes = sizes.page_bytes(model, kv_type)
    rows, n_pages = sizes.step_size(n_ctx, page_bytes)
    weights = 0 if options.weights == "mmap" else _weights(model, choice.backend)
    sizes.check_memory(
        weights,
        beside=n_pages * page_bytes + step_bytes(model.graph, rows),
        n_ctx=n_ctx,
        available=options.available,
    )
    if options.kv_memory is not None:
        notes = (*notes, "kv_memory is not used: a model for embeddings keeps no context")
    if options.cache_dir is not None:
        notes = (*notes, "nothing is kept on disk: embeddings have no prefix cache")
    notes = (*model.graph.notes, *notes)
    runner = _runner(
        model, choice.backend, n_pages, kv_type, options, max_rows=rows, whole_numbers=True
    )
    stack.callback(runner.close)
    engine = sizes.engine_for(model, runner, n_ctx=n_ctx, reason=choice.reason, notes=notes)
    info = ModelInfo(
        name=name,
        path=str(path),
        arch=model.arch,
        quantization=model.summary.quantization,
        parameters=model.summary.parameters,
        file_bytes=model.gguf.size,
        n_vocab=model.graph.n_vocab,
        n_layers=model.graph.n_layers,
        n_embd=model.graph.n_embd,
        n_ctx_train=model.graph.n_ctx_train,
        n_ctx=n_ctx,
        kv_bytes=n_pages * page_bytes,
        kv_type=kv_type,
        engine=engine.name,
        engine_reason=choice.reason,
        isa=engine.isa,
        threads=engine.threads,
        has_chat_template=False,
        notes=notes,
    )
    stack.pop_all()

    def close() -> None:
        engine.close()
        model.close()

    return Loaded(engine=engine, info=info, close=close)


def _open_draft(options: Options, model: ModelFile, stack: ExitStack) -> ModelFile | None:
    """The draft model, if there is one: ConfigError unless it has the model's vocabulary."""
    if options.draft is None:
        return None
    from insula.models.load import open_model

    draft = stack.enter_context(open_model(options.draft))
    check_same_vocabulary(model.tokenizer, draft.tokenizer, name=options.speculate)
    return draft


def _weights(model: ModelFile, backend: str) -> int:
    """Bytes of memory; the reference keeps every parameter as a float32."""
    summary = model.summary
    return 4 * summary.parameters if backend == "reference" else summary.weight_bytes


def _adapters(model: ModelFile, backend: str, options: Options) -> list[Adapter]:
    if not options.adapters:
        return []
    require(backend, "adapters")
    from insula.models.adapter import read_adapter
    from insula.models.adapters import Adapter

    return [
        Adapter(
            name=name,
            factors={
                weight: (update.a, update.b * np.float32(update.scale))
                for weight, update in read_adapter(path, model.gguf).items()
            },
        )
        for name, path in options.adapters.items()
    ]


def _runner(
    model: ModelFile,
    backend: str,
    n_pages: int,
    kv_type: str,
    options: Options,
    *,
    adapters: Sequence[Adapter] = (),
    max_rows: int | None = None,
    whole_numbers: bool = False,
) -> Runner:
    if backend == "reference":
        from insula.ops.reference import ReferenceRunner

        return ReferenceRunner(model.graph, model.gguf, n_pages=n_pages, page_size=PAGE_TOKENS)
    from insula.engine.runner import MAX_ROWS, NativeRunner

    return NativeRunner(
        model.graph,
        model.gguf,
        n_pages=n_pages,
        threads=options.n_threads,
        kv_type=kv_type,
        max_rows=max_rows or MAX_ROWS,
        packed=(options.home, _fingerprint(model)) if options.weights == "mmap" else None,
        adapters=adapters,
        whole_numbers=whole_numbers,
    )


def _fingerprint(model: ModelFile) -> bytes:
    """The model, and the build of the core: another may round or pack otherwise. The instruction
    set changes no bit. Raises OSError."""
    from insula import _native
    from insula.models.fingerprint import fingerprint

    core = Path(_native.__file__ or "").stat()
    return fingerprint(model.graph, model.gguf) + repr((core.st_size, core.st_mtime_ns)).encode()


def _disk_cache(
    model: ModelFile, runner: Runner, backend: str, kv_type: str, options: Options
) -> tuple[DiskCache | None, tuple[str, ...]]:
    """The cache on disk, if one is wanted and can be had; else a note that says why not."""
    if options.cache_dir is None:
        return None, ()
    if backend != "native":
        return None, (NO_DISK_CACHE.format(backend=backend),)
    native = cast("NativeRunner", runner)
    try:
        files = PageFiles(
            options.cache_dir,
            page_tokens=native.page_size,
            page_bytes=native.page_bytes,
            most_bytes=options.cache_dir_bytes,
        )
        if files.offset + files.page_bytes > files.most_bytes:
            needed = files.offset + files.page_bytes
            why = f"cache_dir_bytes is {files.most_bytes}, and one page takes {needed} bytes"
            return None, (f"nothing is kept on disk: {why}",)
        which = _fingerprint(model)
    except OSError as error:
        why = error.strerror or str(error)
        return None, (f"nothing is kept on disk: cache_dir cannot be used: {why}",)
    which += repr((PAGE_VERSION, native.page_size, kv_type)).encode()
    # A prompt from disk comes faster than new memory does: take that now, while nobody waits.
    native.populate(min(len(files), READY_BYTES // native.page_bytes))
    return DiskCache(files, native, model=which), ()


def _llamacpp(
    path: Path, name: str, choice: Choice, options: Options, notes: tuple[str, ...]
) -> Loaded:
    if options.adapters:
        require(choice.backend, "adapters")
    if options.speculate != "off":
        require(choice.backend, "speculation")
    from insula import _native
    from insula.engine.backends.llamacpp import LlamaCppEngine
    from insula.formats.gguf import GGUFFile
    from insula.formats.gguf_split import siblings
    from insula.models.load import summarize

    if options.kv_type != "f16":
        raise ConfigError(f"kv_type: found {options.kv_type!r}; the llamacpp backend has f16")
    with GGUFFile.open(path, allow_split=True) as file:
        meta = file.metadata
        summary = summarize(file)
        layers = _number(meta, f"{summary.arch}.block_count")
        width = _number(meta, f"{summary.arch}.embedding_length")
        # Unknown shape: as if every layer kept full-width keys and values, an upper bound.
        known = options.kv_bytes_of(meta) if options.kv_bytes_of else None
        per_token = known or layers * width * 4
    if options.cache_dir is not None:
        notes = (*notes, NO_DISK_CACHE.format(backend="llamacpp"))
    on_gpu = gpus() if options.gpu_layers != 0 else ()
    if on_gpu:
        some = options.gpu_layers not in (None, -1)  # llama.cpp's default is all of them
        layers_there = f"{options.gpu_layers} layers" if some else "all layers"
        notes = (*notes, f"{layers_there} on {', '.join(on_gpu)}")
    trained = summary.context_length or UNKNOWN_CONTEXT
    plan = options.plan(n_ctx_train=trained, bytes_per_token=per_token)
    engine = LlamaCppEngine(
        path,
        n_ctx=plan.n_ctx,
        threads=options.n_threads or int(_native.cpu_info()["threads"]),
        reason=choice.reason,
        gpu_layers=options.gpu_layers,
        mmproj=options.mmproj,
    )
    info = ModelInfo(
        name=name,
        path=str(path),
        arch=summary.arch,
        quantization=summary.quantization,
        parameters=summary.parameters,
        file_bytes=sum(part.stat().st_size for part in siblings(path)),
        n_vocab=engine.n_vocab,
        n_layers=layers,
        n_embd=width,
        n_ctx_train=trained,
        n_ctx=plan.n_ctx,
        kv_bytes=plan.n_ctx * per_token,
        kv_type="f16",
        engine=engine.name,
        engine_reason=choice.reason,
        isa=engine.isa,
        threads=engine.threads,
        has_chat_template=engine.tokenizer.chat_template is not None,
        notes=(*plan.notes, *notes),
    )
    return Loaded(engine=engine, info=info, close=engine.close)


def _number(meta: Mapping[str, Any], key: str) -> int:
    value = meta.get(key)
    return value if isinstance(value, int) else 0


def _checked(options: Options) -> Options:
    """The options with plain integers. Raises ConfigError."""
    counts: dict[str, Any] = {}
    for name, most in (
        ("n_ctx", MAX_CONTEXT),
        ("n_threads", MAX_THREADS),
        ("max_running", MAX_RUNNING),
        ("draft_tokens", MAX_DRAFT_TOKENS),
    ):
        value = getattr(options, name)
        if value is None and name != "max_running":
            continue
        if (
            isinstance(value, bool)
            or not isinstance(value, Integral)
            or not 1 <= int(value) <= most
        ):
            raise ConfigError(f"{name}: found {value!r}; allowed: 1 to {most}")
        counts[name] = int(value)
    if options.kv_type not in KV_TYPES:
        raise ConfigError(f"kv_type: found {options.kv_type!r}; allowed: {', '.join(KV_TYPES)}")
    if options.weights not in WEIGHTS:
        raise ConfigError(f"weights: found {options.weights!r}; allowed: {', '.join(WEIGHTS)}")
    layers: Any = options.gpu_layers
    if layers is not None and (
        isinstance(layers, bool) or not isinstance(layers, int) or not -1 <= layers <= MAX_LAYERS
    ):
        raise ConfigError(f"gpu_layers: found {layers!r}; allowed: 0 to {MAX_LAYERS}, -1 for all")
    if options.draft_tokens is not None and options.speculate == "off":
        raise ConfigError(
            f"draft_tokens: found {options.draft_tokens}, and speculation is off; "
            'speculate="ngram" or a draft model turns it on'
        )
    return replace(options, **counts)
