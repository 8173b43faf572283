"""A model that another server runs: vLLM, llama.cpp's server, another Insula.

Owns `RemoteEngine`, which has the face of `engine.request.TextEngine` and takes text, ids and
conversations; the template and the vocabulary are the server's. Refuses, by name, what needs
either of them here, and logits.

Each request has a thread of its own, as many at once as `max_running`; the others wait. A
cancellation breaks the connection, which servers take as the wish to stop, and is seen at once.
"""

from __future__ import annotations

import secrets
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from queue import SimpleQueue

from insula.engine.backends.base import require
from insula.engine.backends.remote_http import Address, RemoteServer
from insula.engine.backends.remote_request import NAME, body, notes
from insula.engine.backends.remote_stream import AnswerReader
from insula.engine.request import Handle, Request, Tokenizer
from insula.engine.sampling import validate
from insula.errors import ConfigError, EngineError, RemoteError, UnsupportedError
from insula.types import Chunk, Completion, FinishReason, ModelInfo, Report, TokenLogprob

REASON = "the model's name is a server's address"
#: Most names of models that an error lists.
MAX_LISTED = 20


class RemoteEngine:
    """A model on a server. Close it."""

    name, reason, isa, threads = NAME, REASON, "", 0
    takes = frozenset({"text", "conversation", "media"})
    n_vocab = 0

    def __init__(self, server: RemoteServer, *, max_running: int = 16) -> None:
        """Asks the server for its models. Raises RemoteError, ConfigError."""
        self._server = server
        self.model, self.n_ctx, self.notes = _model(server)
        self._slots = threading.Semaphore(max_running)
        self._runs: weakref.WeakSet[_Run] = weakref.WeakSet()
        self._closed = False

    @property
    def tokenizer(self) -> Tokenizer:
        """There is none. Raises UnsupportedError."""
        require(NAME, "tokenizer")
        raise AssertionError

    @property
    def info(self) -> ModelInfo:
        """What is known of the model: its name, and where it is."""
        return ModelInfo(
            name=self.model,
            path=self._server.address.base,
            arch="unknown",
            quantization="unknown",
            parameters=0,
            file_bytes=0,
            n_vocab=0,
            n_layers=0,
            n_embd=0,
            n_ctx_train=self.n_ctx,
            n_ctx=self.n_ctx,
            kv_bytes=0,
            kv_type="unknown",
            engine=NAME,
            engine_reason=REASON,
            isa="",
            threads=0,
            has_chat_template=True,
            notes=self.notes,
        )

    def submit(self, request: Request) -> Handle:
        """Check and send. Raises ConfigError, UnsupportedError."""
        if request.on_prompt_logits is not None:
            require(NAME, "logits")
        if self._closed:
            raise EngineError("the engine is closed; open the model again")
        if not request.ids and not request.text and request.conversation is None:
            raise ConfigError("the prompt is empty; at least one token is needed")
        if request.conversation is not None and request.conversation.tools:
            raise UnsupportedError(
                f"the {NAME} backend cannot take tools: a server gives calls of them apart from "
                "the text, and there is no place for them yet",
                backend=NAME,
            )
        validate(request.params)
        run = _Run(self, request)
        self._runs.add(run)
        run.start()
        return RemoteHandle(run)

    def close(self) -> None:
        """Cancel what runs and close the connections. Twice is harmless."""
        self._closed = True
        for run in list(self._runs):
            run.cancel()
        self._server.close()


class RemoteHandle:
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
            self._run.done.wait()
        except BaseException:  # Ctrl-C while waiting
            self.cancel()
            raise
        if self._run.error is not None:
            raise self._run.error
        assert self._run.completion is not None
        return self._run.completion

    def cancel(self) -> None:
        """End the request now."""
        self._run.cancel()

    def __del__(self) -> None:
        self._run.cancel()


class _Run(threading.Thread):
    """Runs one request. Holds no reference to its handle, so that dropping that is seen."""

    def __init__(self, engine: RemoteEngine, request: Request) -> None:
        super().__init__(name="insula-remote", daemon=True)
        self.chunks: SimpleQueue[Chunk | None] = SimpleQueue()
        self.done = threading.Event()
        self.completion: Completion | None = None
        self.error: BaseException | None = None
        self._engine = engine
        self._request = request
        seed = request.params.seed
        self._seed = secrets.randbits(31) if seed is None else int(seed)
        # Checks every option now, in the caller's thread.
        self._route, self._body = body(request, engine.model, self._seed)
        self._reader = AnswerReader(scored=request.params.logprobs is not None)
        # Reentrant: a finalizer may cancel while this thread holds it.
        self._lock = threading.RLock()
        self._break: Callable[[], None] | None = None
        self._waits = False  # it holds one of the engine's turns
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._submitted = time.perf_counter()
        self._first: float | None = None
        self._last = self._submitted

    def run(self) -> None:
        self._engine._slots.acquire()
        self._waits = True
        try:
            if not self.done.is_set():
                self._talk()
            self._end(self._reader.ended or "stop")
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits
            self._fail(error)
        finally:
            self._leave()

    def cancel(self) -> None:
        """End now with what there is. Safe from any thread, and twice.

        A server that has not begun to answer cannot be told: its connection ends when it does, or
        when it has been silent too long. Nobody waits for that.
        """
        self._end("cancelled")
        if self._break is not None:
            self._break()
        else:
            self._leave()

    def _leave(self) -> None:
        """Let the next request have this one's turn."""
        with self._lock:
            waits, self._waits = self._waits, False
        if waits:
            self._engine._slots.release()

    def _talk(self) -> None:
        events = self._engine._server.events(self._route, self._body, opened=self._opened)
        for event in events:
            if self.done.is_set():
                return
            piece = self._reader.read(event)
            if piece is None or not (piece.text or piece.reasoning or piece.logprobs):
                continue
            self._last = time.perf_counter()
            with self._lock:
                if self.done.is_set():
                    return
                if self._first is None:
                    self._first = self._last
                self._text.append(piece.text)
                self._reasoning.append(piece.reasoning)
                self._logprobs += piece.logprobs
                scored = self._request.params.logprobs is not None
                self.chunks.put(
                    Chunk(
                        text=piece.text,
                        token_ids=(),
                        reasoning=piece.reasoning,
                        logprobs=piece.logprobs if scored else None,
                    )
                )
        if self._reader.ended is None:
            raise RemoteError(
                "the server's stream ended before the answer did; what came so far was "
                f"{len(''.join(self._text))} characters",
                retryable=True,
            )

    def _opened(self, breaks: Callable[[], None]) -> None:
        self._break = breaks
        if self.done.is_set():
            breaks()

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            if not self.done.is_set():
                self.error = error
                self.chunks.put(None)
                self.done.set()

    def _end(self, reason: FinishReason) -> None:
        with self._lock:
            if self.done.is_set():
                return
            scored = self._request.params.logprobs is not None
            reasoning = "".join(self._reasoning)
            self.completion = Completion(
                text="".join(self._text),
                token_ids=(),
                finish_reason=reason,
                logprobs=tuple(self._logprobs) if scored else None,
                report=self._report(),
                reasoning=reasoning or None,
            )
            self.chunks.put(
                Chunk(text="", token_ids=(), finish_reason=reason, completion=self.completion)
            )
            self.chunks.put(None)
            self.done.set()

    def _report(self) -> Report:
        reader = self._reader
        n_prompt, n_completion = reader.count("prompt_tokens"), reader.count("completion_tokens")
        waited = self._first - self._submitted if self._first is not None else 0.0
        spoke = self._last - self._first if self._first is not None else 0.0
        own = list(reader.notes)
        if not reader.usage:
            own.append("the server did not count the tokens")
        if self._request.params.logprobs is not None and self._text and not self._logprobs:
            own.append("the server gave no log probabilities")
        return Report(
            engine=NAME,
            engine_reason=REASON,
            isa="",
            threads=0,
            seed=self._seed,
            prompt_tokens=n_prompt,
            completion_tokens=n_completion,
            cached_tokens=reader.cached,
            time_to_first_token=waited,
            prompt_tokens_per_second=n_prompt / waited if waited > 0 else 0.0,
            decode_tokens_per_second=(n_completion - 1) / spoke
            if n_completion > 1 and spoke > 0
            else 0.0,
            notes=(*self._request.notes, *notes(self._request), *own),
        )


def connect(
    address: Address, *, api_key: str | None, timeout: float, max_running: int
) -> RemoteEngine:
    """Open a server and ask for its models. Raises RemoteError, ConfigError, UnsupportedError."""
    server = RemoteServer(address, api_key=api_key, timeout=timeout, connections=max_running + 2)
    try:
        engine = RemoteEngine(server, max_running=max_running)
    except BaseException:
        server.close()
        raise
    if api_key and address.base.startswith("http:") and not address.local:
        engine.notes += ("the key travels unencrypted: the address is http, and another machine",)
    return engine


def _model(server: RemoteServer) -> tuple[str, int, tuple[str, ...]]:
    """(the model's name, its context or 0, notes)."""
    asked = server.address.model
    try:
        answer = server.get("models")
    except RemoteError as error:
        if error.status != 404 or asked is None:
            raise
        return asked, 0, ("the server does not list its models; the name was not checked",)
    rows = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(rows, list):
        raise RemoteError(
            f"{server.address.base}/models lists no models; is it an OpenAI-compatible server?"
        )
    models = {str(row["id"]): row for row in rows if isinstance(row, dict) and "id" in row}
    listed = server.clean(", ".join(list(models)[:MAX_LISTED])) or "none"
    if asked is None:
        if len(models) != 1:
            raise ConfigError(
                f"remote: the server has {len(models)} models; name one after a #: {listed}"
            )
        [asked] = models
    elif asked not in models:
        raise ConfigError(f"remote: the server has no model {asked!r}; it has: {listed}")
    n_ctx = _context(models[asked])
    unknown = () if n_ctx else ("the server does not say how long its context is",)
    return asked, n_ctx, unknown


def _context(row: dict[str, object]) -> int:
    """Tokens of context, where vLLM, llama.cpp's server or another puts them; 0 if nowhere."""
    meta = row.get("meta")
    places = [row.get("max_model_len"), row.get("context_length")]
    if isinstance(meta, dict):
        places += [meta.get("n_ctx"), meta.get("n_ctx_train")]
    return next((n for n in places if isinstance(n, int) and n > 0), 0)
