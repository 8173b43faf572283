"""Any checkpoint folder in Hugging Face form, by the transformers library over PyTorch.

Owns `TransformersEngine`, which has the face of `engine.request.TextEngine`: the model computes
logits, ours are the sampling, the stop strings and the template. On CUDA if there is one. Requests
run one after another, each from an empty cache. Refuses code that a checkpoint brings (nothing of
it is ever run) and pickled weights.
"""

from __future__ import annotations

import dataclasses
import json
import re
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from insula.engine.backends.transformers_tokenizer import CheckpointTokenizer
from insula.engine.breakers import BreakerTable
from insula.engine.load import MAX_THREADS, UNKNOWN_CONTEXT, Loaded
from insula.engine.request import Handle, Request
from insula.engine.sampling import Sampler, draw_seed, validate, wants_breakers
from insula.engine.sequence import EngineFacts, Output, Sequence
from insula.errors import (
    ConfigError,
    ContextOverflowError,
    EngineError,
    FormatError,
    InsulaError,
    ResourceError,
    UnsupportedError,
)
from insula.types import Chunk, Completion, ModelInfo, TokenLogprob

NAME = "transformers"
#: Tokens of a prompt at once: a cancellation is seen between them, and logits stay small.
SLICE = 256


class TransformersEngine:
    """A loaded checkpoint. Close it."""

    name = NAME
    takes: frozenset[str] = frozenset()

    def __init__(
        self, model: Any, tokenizer: CheckpointTokenizer, *, n_ctx: int, reason: str
    ) -> None:
        import torch

        self._model = model
        self.tokenizer = tokenizer
        self.n_ctx, self.n_vocab = n_ctx, tokenizer.vocab_size
        self.reason = reason
        on_gpu = model.device.type == "cuda"
        self.isa = (
            torch.cuda.get_device_name(model.device)
            if on_gpu
            else torch.backends.cpu.get_cpu_capability().lower()
        )
        self.threads = torch.get_num_threads()
        self._facts = EngineFacts(name=NAME, reason=reason, isa=self.isa, threads=self.threads)
        self._breakers = BreakerTable(tokenizer)
        self._turn = threading.Lock()
        self._runs: weakref.WeakSet[_Run] = weakref.WeakSet()

    def submit(self, request: Request) -> Handle:
        """Check and queue. Raises ConfigError, ContextOverflowError, EngineError."""
        if self._model is None:
            raise EngineError("the engine is closed; open the model again")
        run = _Run(self, self._sequence(request))
        self._runs.add(run)
        run.start()
        return TransformersHandle(run)

    def close(self) -> None:
        """Cancel what runs and free the model. Twice is harmless."""
        for run in list(self._runs):
            run.cancelled.set()
        with self._turn:
            self._model = None

    def _sequence(self, request: Request) -> Sequence:
        ids, params = request.ids, request.params
        if not ids:
            raise ConfigError("the prompt is empty; at least one token is needed")
        if min(ids) < 0 or max(ids) >= self.n_vocab:
            wrong = next(i for i in ids if not 0 <= i < self.n_vocab)
            raise ConfigError(f"token id {wrong}: the vocabulary has 0 to {self.n_vocab - 1}")
        limit = self.n_ctx if request.n_ctx is None else request.n_ctx
        if not 1 <= limit <= self.n_ctx:
            raise ConfigError(f"n_ctx: found {limit}; allowed: 1 to {self.n_ctx}")
        if params.ignore_eos:
            never = dict.fromkeys(self.tokenizer.eog_ids, float("-inf"))
            params = dataclasses.replace(params, logit_bias={**params.logit_bias, **never})
        validate(params, n_vocab=self.n_vocab)
        needed = len(ids) + (1 if params.max_tokens is None else params.max_tokens)
        if needed > limit:
            raise ContextOverflowError(
                needed, limit, "shorten the prompt, lower max_tokens or raise n_ctx"
            )
        breakers = params.dry_sequence_breakers if wants_breakers(params) else ()
        return Sequence(
            request,
            params=params,
            sampler=Sampler(params, n_vocab=self.n_vocab, breakers=self._breakers.find(breakers)),
            seed=draw_seed() if params.seed is None else int(params.seed),
            limit=limit,
            output=Output(
                detokenizer=self.tokenizer.detokenizer(
                    skip_special=request.skip_special, continues=request.continues
                ),
                stops=params.stop,
                facts=self._facts,
            ),
        )


class TransformersHandle:
    """One request's chunks. Dropping it cancels the request."""

    def __init__(self, run: _Run) -> None:
        self._run = run

    def __iter__(self) -> Iterator[Chunk]:
        """Chunks as they come. The last one carries finish_reason and the Completion."""
        while (chunk := self._run.chunks.get()) is not None:
            yield chunk
        self._run.chunks.put(None)  # a second iteration ends at once
        if self._run.error is not None:
            raise self._run.error

    def result(self) -> Completion:
        """Wait for the end. Raises the request's error."""
        try:
            self._run.join()
        except BaseException:  # Ctrl-C while waiting
            self.cancel()
            raise
        if self._run.error is not None:
            raise self._run.error
        completion = self._run.seq.output.completion
        assert completion is not None
        return completion

    def cancel(self) -> None:
        """End the request at its next token or slice of the prompt."""
        self._run.cancelled.set()

    def __del__(self) -> None:
        self._run.cancelled.set()


class _Run(threading.Thread):
    """Runs one request. Holds no reference to its handle, so that dropping that is seen."""

    def __init__(self, engine: TransformersEngine, seq: Sequence) -> None:
        super().__init__(name="insula-transformers", daemon=True)
        self.chunks: SimpleQueue[Chunk | None] = SimpleQueue()
        self.cancelled = threading.Event()
        self.error: BaseException | None = None
        self.seq = seq
        self._engine = engine

    def run(self) -> None:
        import torch

        try:
            with self._engine._turn, torch.inference_mode():
                self.seq.output.started = time.perf_counter()
                self._generate()
        except torch.OutOfMemoryError:
            self.error = ResourceError(
                "the GPU's memory is not enough; shorten the prompt, or gpu_layers=0 takes the CPU"
            )
        except InsulaError as error:
            self.error = error
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits
            self.error = EngineError(f"transformers failed while it ran: {str(error)[:300]}")
            self.error.__cause__ = error
        finally:
            self._give_out()
            self.chunks.put(None)

    def _generate(self) -> None:
        seq, output, params = self.seq, self.seq.output, self.seq.params
        logits = self._prefill()
        while not self.cancelled.is_set():
            now = time.perf_counter()
            if logits is None or params.max_tokens == 0:
                output.finish(seq, "length", now)
                return
            chosen = seq.sampler(
                logits, seq.history, len(seq.ids), seq.seed, mirostat_mu=seq.mirostat_mu
            )
            seq.mirostat_mu = chosen.mirostat_mu
            token_id = chosen.token_id
            bytes_of = self._engine.tokenizer.token_bytes
            if token_id in self._engine.tokenizer.eog_ids and not params.ignore_eos:
                output.finish(seq, "stop", now)
                return
            scored = None
            if chosen.logprob is not None:
                scored = TokenLogprob(
                    token_id=token_id,
                    token=bytes_of(token_id),
                    logprob=chosen.logprob,
                    top=tuple((i, bytes_of(i), p) for i, p in chosen.top),
                )
            seq.append(token_id)
            stopped = output.push(token_id, scored, now)
            self._give_out()
            if stopped or seq.n_generated == params.max_tokens or len(seq.ids) == seq.limit:
                output.finish(seq, "stop" if stopped else "length", now)
                return
            logits = self._rows([token_id])[-1]
        output.finish(seq, "cancelled", time.perf_counter())

    def _prefill(self) -> Any:
        """Run the prompt, give out its logits if they are wanted; the last row, if there is one."""
        import transformers

        seq, row = self.seq, None
        self._cache = transformers.DynamicCache()
        wanted = seq.request.on_prompt_logits
        for start in range(0, seq.n_prompt, SLICE):
            if self.cancelled.is_set():
                return None
            rows = self._rows(seq.ids[start : min(start + SLICE, seq.n_prompt)])
            first = max(seq.request.prompt_logits_from, start)
            if wanted is not None and first < start + len(rows):
                wanted(first, rows[first - start :])
            row = rows[-1]
        return row

    def _rows(self, ids: list[int]) -> Any:
        """Logits float32 [len(ids), n_vocab] after each of `ids`, which follow what was run."""
        import torch

        model = self._engine._model
        if model is None:
            raise EngineError("the engine is closed; open the model again")
        given = torch.tensor([ids], device=model.device)
        out = model(input_ids=given, past_key_values=self._cache, use_cache=True)
        return out.logits[0].float().cpu().numpy()

    def _give_out(self) -> None:
        while self.seq.output.chunks:
            self.chunks.put(self.seq.output.chunks.popleft())


def open_folder(
    path: Path, *, n_ctx: int | None, n_threads: int | None, gpu_layers: int | None, reason: str
) -> Loaded:
    """Load a checkpoint folder.

    gpu_layers: None takes CUDA if there is one, 0 the CPU, -1 needs CUDA.
    Raises UnsupportedError, FormatError, ConfigError, ResourceError.
    """
    import torch
    import transformers

    _check_thread_count(n_threads)
    device = _device(gpu_layers, cuda=torch.cuda.is_available())
    if not list(path.glob("*.safetensors")):
        raise UnsupportedError(
            f"the {NAME} backend cannot open {path}: it has no safetensors file (pickled weights "
            "can run code, and are never opened)",
            backend=NAME,
        )
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    notes: list[str] = []
    with _quiet(transformers), _failures(path):
        config = transformers.AutoConfig.from_pretrained(path, **options)
        own = transformers.AutoTokenizer.from_pretrained(path, **options)
        dtype: Any = "auto"
        if device == "cpu" and _stored_type(config) == "float16":
            dtype = torch.float32
            notes.append("float16 weights are kept as float32, which the CPU computes with")
        model = transformers.AutoModelForCausalLM.from_pretrained(
            path, config=config, dtype=dtype, use_safetensors=True, **options
        )
        model.eval().to(device)
    if n_threads is not None:
        torch.set_num_threads(n_threads)
        notes.append(f"{n_threads} threads are PyTorch's for the whole process")
    text_config = config.get_text_config()
    trained = int(getattr(text_config, "max_position_embeddings", 0) or 0)
    limit = _context(n_ctx, trained, notes)
    ends = model.generation_config.eos_token_id if model.generation_config else None
    tokenizer = CheckpointTokenizer(
        own,
        vocab_size=int(text_config.vocab_size),
        end_ids=ends if isinstance(ends, list) else () if ends is None else (ends,),
    )
    engine = TransformersEngine(model, tokenizer, n_ctx=limit, reason=reason)
    heads = int(getattr(text_config, "num_key_value_heads", 0) or 0) or int(
        getattr(text_config, "num_attention_heads", 0) or 0
    )
    width = int(getattr(text_config, "hidden_size", 0) or 0)
    layers = int(getattr(text_config, "num_hidden_layers", 0) or 0)
    per_head = int(
        getattr(text_config, "head_dim", 0)
        or width // max(1, int(getattr(text_config, "num_attention_heads", 1) or 1))
    )
    parameters = sum(p.numel() for p in model.parameters())
    info = ModelInfo(
        name=path.resolve().name,
        path=str(path),
        arch=str(config.model_type),
        quantization=str(model.dtype).removeprefix("torch."),
        parameters=parameters,
        file_bytes=sum(f.stat().st_size for f in path.glob("*.safetensors")),
        n_vocab=tokenizer.vocab_size,
        n_layers=layers,
        n_embd=width,
        n_ctx_train=trained,
        n_ctx=limit,
        kv_bytes=2 * limit * layers * heads * per_head * model.dtype.itemsize,
        kv_type=str(model.dtype).removeprefix("torch."),
        engine=NAME,
        engine_reason=reason,
        isa=engine.isa,
        threads=engine.threads,
        has_chat_template=tokenizer.chat_template is not None,
        notes=tuple(notes),
    )
    return Loaded(engine=engine, info=info, close=engine.close)


def _device(gpu_layers: int | None, *, cuda: bool) -> str:
    if gpu_layers not in (None, 0, -1) or isinstance(gpu_layers, bool):
        raise UnsupportedError(
            f"the {NAME} backend cannot take gpu_layers={gpu_layers!r}; it takes -1 (all) or 0",
            backend=NAME,
        )
    if gpu_layers == -1 and not cuda:
        raise UnsupportedError(
            f"the {NAME} backend cannot take gpu_layers=-1: PyTorch sees no CUDA device here",
            backend=NAME,
        )
    return "cuda" if cuda and gpu_layers != 0 else "cpu"


def _context(n_ctx: Any, trained: int, notes: list[str]) -> int:
    if n_ctx is None:
        return trained or UNKNOWN_CONTEXT
    if isinstance(n_ctx, bool) or not isinstance(n_ctx, int) or n_ctx < 1:
        raise ConfigError(f"n_ctx: found {n_ctx!r}; allowed is 1 or more")
    if trained and n_ctx > trained:
        notes.append(f"n_ctx {n_ctx} is more than the {trained} tokens that it was trained for")
    return n_ctx


def _check_thread_count(n: Any) -> None:
    if n is not None and (
        isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= MAX_THREADS
    ):
        raise ConfigError(f"n_threads: found {n!r}; allowed: 1 to {MAX_THREADS}")


def _stored_type(config: Any) -> str:
    return str(getattr(config, "dtype", "")).removeprefix("torch.")


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """The library's progress bars and advice stay off the user's terminal while it loads."""
    logging = transformers.utils.logging
    level, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


@contextmanager
def _failures(path: Path) -> Iterator[None]:
    """What the library raises for a folder that will not do, in our types and one line."""
    import safetensors

    try:
        yield
    except (ValueError, KeyError, OSError, ImportError, AttributeError, TypeError) as error:
        said = " ".join(str(error).split())
        if "trust_remote_code" in said:
            raise UnsupportedError(
                f"the {NAME} backend cannot open {path}: the checkpoint brings code of its own, "
                "which is never run",
                backend=NAME,
            ) from None
        if kind := re.match(r"Unrecognized configuration class <class '[\w.]*?(\w+)'>", said):
            raise UnsupportedError(
                f"the {NAME} backend cannot open {path}: it takes models that generate text one "
                f"token after the other, and {kind[1]} is of none; an encoder gives vectors, "
                f"rankings or labels as a GGUF file: insula convert {path} model.gguf",
                backend=NAME,
            ) from None
        if isinstance(error, json.JSONDecodeError):
            raise FormatError(
                f"{path}: a file of the checkpoint is not JSON: {said[:300]}"
            ) from error
        raise UnsupportedError(
            f"the {NAME} backend cannot open {path}: {said[:300]}", backend=NAME
        ) from error
    except safetensors.SafetensorError as error:
        raise FormatError(f"{path}: {str(error)[:300]}") from error
    except (MemoryError, RuntimeError) as error:
        said = " ".join(str(error).split())[:300]
        raise ResourceError(f"{path} could not be loaded: {said}") from error
