"""llama.cpp as an engine: what native does not know yet, through the xllamacpp wheel.

Owns `LlamaCppEngine`, which has the face of `engine.request.TextEngine`. Requests are queued by
llama.cpp and run one after another in its only slot, whose cache makes the next turn of a chat
cost its new tokens alone. Refuses, by name, what llama.cpp cannot do (see `base`).

Each request runs on a thread of its own: the handler blocks and calls back, in prefill after
every batch and in decode after every token, and that is where a cancellation takes effect.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from insula.engine.backends.base import require
from insula.engine.backends.llamacpp_request import (
    NAME,
    completion_request,
    conversation_request,
    draw_seed,
)
from insula.engine.backends.llamacpp_server import LlamaCppServer, system_isa
from insula.engine.backends.llamacpp_stream import GapFinder, Piece, StreamReader
from insula.engine.backends.llamacpp_tokenizer import LlamaCppTokenizer
from insula.engine.request import Handle, Request, Tokenizer
from insula.engine.sampling import validate
from insula.engine.stops import StopStrings
from insula.errors import ConfigError, ContextOverflowError, UnsupportedError
from insula.types import Chunk, Completion, FinishReason, Report, TokenLogprob


class LlamaCppEngine:
    """A model loaded by llama.cpp. Close it, or use it as a context manager."""

    name = NAME

    def __init__(
        self,
        path: str | Path,
        *,
        n_ctx: int,
        threads: int,
        reason: str = "asked for",
        gpu_layers: int | None = None,
        mmproj: Path | None = None,
    ) -> None:
        """Load `path` with a context of `n_ctx` tokens.

        gpu_layers: layers on the GPU, if the installed wheel has one (None: its default).
        mmproj: the projector's file, with which conversations may have images or sound.
        Raises UnsupportedError (wheel missing), FormatError, NotFoundError, EngineError.
        """
        from insula.formats.gguf import GGUFFile

        self.reason = reason
        self.takes = frozenset() if mmproj is None else frozenset({"media"})
        self.threads = threads
        self.n_ctx = n_ctx
        # Our own reader first: llama.cpp is not given a file whose structure lies.
        with GGUFFile.open(path, allow_split=True) as file:
            metadata = dict(file.metadata)
            _check_context(metadata, n_ctx)
            tokenizer = _own_tokenizer(metadata)
            if mmproj is not None:
                _check_projector(mmproj)
            self._server = LlamaCppServer(
                Path(path), n_ctx=n_ctx, threads=threads, gpu_layers=gpu_layers, mmproj=mmproj
            )
            if tokenizer is None:
                metadata = {k: _copied(v) for k, v in metadata.items() if "tokenizer" in k}
                tokenizer = LlamaCppTokenizer(self._server, metadata)
        self.tokenizer: Tokenizer = tokenizer
        self.n_vocab = tokenizer.vocab_size
        self.isa = system_isa()
        self._gaps = GapFinder(tokenizer)
        self._turn = threading.Lock()
        self._runs: weakref.WeakSet[_Run] = weakref.WeakSet()
        self._cache_owner: str | None = None

    def __enter__(self) -> LlamaCppEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, request: Request) -> Handle:
        """Check and queue. Raises ConfigError, ContextOverflowError or UnsupportedError."""
        if request.on_prompt_logits is not None:
            require(NAME, "logits")
        ids, params = request.ids, request.params
        if not ids and request.conversation is None:
            raise ConfigError("the prompt is empty; at least one token is needed")
        if request.conversation is not None and request.conversation.tools:
            raise UnsupportedError(
                f"the {NAME} backend cannot take tools together with images or sound", backend=NAME
            )
        validate(params, n_vocab=self.n_vocab)
        limit = self.n_ctx if request.n_ctx is None else request.n_ctx
        if not 1 <= limit <= self.n_ctx:
            raise ConfigError(f"n_ctx: found {limit}; allowed: 1 to {self.n_ctx}")
        if ids and (min(ids) < 0 or max(ids) >= self.n_vocab):
            wrong = next(i for i in ids if not 0 <= i < self.n_vocab)
            raise ConfigError(f"token id {wrong}: the vocabulary has 0 to {self.n_vocab - 1}")
        needed = len(ids) + (1 if params.max_tokens is None else params.max_tokens)
        if needed > limit:
            raise ContextOverflowError(
                needed, limit, "shorten the prompt, lower max_tokens or raise n_ctx"
            )
        run = _Run(
            self,
            request,
            seed=draw_seed() if params.seed is None else int(params.seed),
            limit=limit - len(ids) if params.max_tokens is None else params.max_tokens,
        )
        self._runs.add(run)
        run.start()
        return LlamaCppHandle(run)

    def prompt_text(self, ids: tuple[int, ...]) -> str:
        """The text that becomes exactly these ids: with a projector, llama.cpp takes no ids.

        Raises UnsupportedError where there is none, as for a control token's text that is text.
        """
        tokenizer = self.tokenizer
        begins = tokenizer.add_bos and ids[0] == tokenizer.bos_id
        text = tokenizer.decode(list(ids[1:] if begins else ids))
        if tuple(tokenizer.encode(text, add_special=True, parse_special=True)) != ids:
            raise UnsupportedError(
                f"the {NAME} backend with a projector takes text alone, and no text becomes these "
                "token ids; load the model without mmproj=",
                backend=NAME,
            )
        return text

    def close(self) -> None:
        """Cancel what runs and free the model. Twice is harmless."""
        for run in list(self._runs):
            run.cancelled.set()
        with self._turn:
            self._server.close()

    def may_reuse(self, request: Request) -> bool:
        """Whether the slot's cache may serve `request`; notes who owns it from now on.

        Called with `_turn` held. A slot keeps what ran last, so the first request after one
        of another salt, or one that was to leave nothing, starts from an empty cache.
        """
        allowed = request.use_cache and self._cache_owner == request.salt
        self._cache_owner = request.salt if request.use_cache else None
        return allowed


class LlamaCppHandle:
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
        assert self._run.completion is not None
        return self._run.completion

    def cancel(self) -> None:
        """End the request at its next token or batch of the prompt."""
        self._run.cancelled.set()

    def __del__(self) -> None:
        self._run.cancelled.set()


class _Run(threading.Thread):
    """Runs one request. Holds no reference to its handle, so that dropping that is seen."""

    def __init__(self, engine: LlamaCppEngine, request: Request, *, seed: int, limit: int) -> None:
        super().__init__(name="insula-llamacpp", daemon=True)
        self.chunks: SimpleQueue[Chunk | None] = SimpleQueue()
        self.cancelled = threading.Event()
        self.completion: Completion | None = None
        self.error: BaseException | None = None
        self._engine = engine
        self._request = request
        self._seed = seed
        self._limit = limit
        # Checks every option now, in the caller's thread.
        self._body = completion_request(
            request.ids,
            request.params,
            seed=seed,
            max_tokens=limit,
            eog_ids=engine.tokenizer.eog_ids,
        )
        if request.conversation is not None:
            self._body = conversation_request(self._body, request.conversation)
        elif engine.takes:
            self._body["prompt"] = engine.prompt_text(request.ids)
        self._reader = StreamReader(
            tokenizer=engine.tokenizer, gaps=engine._gaps, logprobs=request.params.logprobs
        )
        self._stops = StopStrings(request.params.stop)
        self._text: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._submitted = time.perf_counter()
        self._first: float | None = None
        self._held: Piece | None = None
        self._ended: FinishReason | None = None

    def run(self) -> None:
        try:
            with self._engine._turn:
                if not self.cancelled.is_set() and self._limit > 0:
                    self._body["cache_prompt"] = self._engine.may_reuse(self._request)
                    if self._request.conversation is None:
                        self._engine._server.complete(self._body, self._on_chunk)
                    else:
                        self._engine._server.converse(self._body, self._on_chat_chunk)
            if self.error is None:
                self._finish()
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits
            self.error = error
        finally:
            self.chunks.put(None)

    def _on_chunk(self, chunk: dict[str, Any]) -> bool:
        """Take a chunk in; True ends the request. Exceptions must not enter llama.cpp."""
        try:
            if self.cancelled.is_set():
                return True
            piece = self._reader.read(chunk)
            return piece is not None and self._push(piece)
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits
            self.error = error
            return True

    def _on_chat_chunk(self, chunk: dict[str, Any]) -> bool:
        """A chat's chunk in a completion's form: the same but for where the text is."""
        for choice in chunk.get("choices", ()):
            choice["text"] = choice.get("delta", {}).get("content") or ""
            choice.setdefault("logprobs", None)
        return self._on_chunk(chunk) if chunk.get("choices", True) else self.cancelled.is_set()

    def _push(self, piece: Piece) -> bool:
        """Take a piece in; True ends the request."""
        if self._first is None:
            self._first = time.perf_counter()
        last = piece.token_ids[-1]
        if last in self._engine.tokenizer.eog_ids and not self._request.params.ignore_eos:
            self._ended = "stop"
            return True
        if self._held is not None:
            self._give_out(self._held)
            self._held = None
        if not piece.text:
            # llama.cpp gives control tokens no text. If it now stops, this one was the end.
            self._held = piece
            return False
        self._give_out(piece)
        return self._stops.hit is not None

    def _give_out(self, piece: Piece) -> None:
        text = piece.text
        tokenizer, last = self._engine.tokenizer, piece.token_ids[-1]
        if not text and not self._request.skip_special and tokenizer.is_special(last):
            text = tokenizer.token_bytes(last).decode("utf-8", "replace")
        elif not self._text and not self._request.continues:
            text = self._without_first_space(piece)
        text = self._stops.push(text)
        self._text.append(text)
        self._token_ids += piece.token_ids
        self._logprobs += piece.logprobs
        scored = self._request.params.logprobs is not None
        self.chunks.put(
            Chunk(
                text=text,
                token_ids=piece.token_ids,
                logprobs=piece.logprobs if scored else None,
            )
        )

    def _without_first_space(self, piece: Piece) -> str:
        """The first piece of a text of its own: the space that some vocabularies put before
        the first word goes, as with our own detokenizer."""
        first, tokenizer = piece.token_ids[0], self._engine.tokenizer
        begins = tokenizer.detokenizer(skip_special=True, continues=False).push(first)
        goes_on = tokenizer.detokenizer(skip_special=True, continues=True).push(first)
        return piece.text if begins == goes_on else piece.text.removeprefix(" ")

    def _finish(self) -> None:
        ended = self._ended or self._reader.ended
        if self._held is not None and ended != "stop":
            self._give_out(self._held)
        reason: FinishReason = ended or "length"
        if self._stops.hit is not None:
            reason = "stop"
        elif self.cancelled.is_set() and ended is None:
            reason = "cancelled"
        rest = self._stops.flush()
        self._text.append(rest)
        scored = self._request.params.logprobs is not None
        self.completion = Completion(
            text="".join(self._text),
            token_ids=tuple(self._token_ids),
            finish_reason=reason,
            logprobs=tuple(self._logprobs) if scored else None,
            report=self._report(),
        )
        self.chunks.put(
            Chunk(text=rest, token_ids=(), finish_reason=reason, completion=self.completion)
        )

    def _report(self) -> Report:
        timings = self._reader.timings
        n_decoded = int(timings.get("predicted_n", 0))
        decode_seconds = float(timings.get("predicted_ms", 0.0)) / 1000
        return Report(
            engine=NAME,
            engine_reason=self._engine.reason,
            isa=self._engine.isa,
            threads=self._engine.threads,
            seed=self._seed,
            prompt_tokens=len(self._request.ids)
            or int(timings.get("prompt_n", 0)) + int(timings.get("cache_n", 0)),
            completion_tokens=len(self._token_ids) + self._reader.lost,
            cached_tokens=int(timings.get("cache_n", 0)),
            time_to_first_token=self._first - self._submitted if self._first else 0.0,
            prompt_tokens_per_second=float(timings.get("prompt_per_second", 0.0)),
            # llama.cpp's clock starts with the first token, so that one does not count.
            decode_tokens_per_second=(
                (n_decoded - 1) / decode_seconds if n_decoded > 1 and decode_seconds > 0 else 0.0
            ),
            dropped_turns=self._request.dropped_turns,
            dropped_tokens=self._request.dropped_tokens,
            notes=(*self._request.notes, *self._reader.notes()),
        )


def _check_context(metadata: dict[str, Any], n_ctx: int) -> None:
    """llama.cpp's server cuts a longer context down without a word."""
    trained = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    if isinstance(trained, int) and n_ctx > trained:
        raise UnsupportedError(
            f"the {NAME} backend cannot take n_ctx={n_ctx}; it takes at most the {trained} tokens "
            "that the model was trained for",
            backend=NAME,
        )


def _check_projector(path: Path) -> None:
    """Our reader sees its structure first. Raises FormatError, NotFoundError, ConfigError."""
    from insula.formats.gguf import GGUFFile

    with GGUFFile.open(path) as file:
        arch = file.metadata.get("general.architecture")
    if arch != "clip":
        raise ConfigError(
            f"mmproj: {path} is a file of architecture {str(arch)[:40]!r}; allowed is the model's "
            "projector (clip)"
        )


def _own_tokenizer(metadata: dict[str, Any]) -> Tokenizer | None:
    """Our tokenizer, or None for a kind of vocabulary that it lacks (llama.cpp's then serves).

    A vocabulary that contradicts itself stays a TokenizerError: nobody should load it.
    """
    from insula.tokenizer import Tokenizer as OwnTokenizer

    try:
        return OwnTokenizer.from_metadata(metadata)
    except UnsupportedError:
        return None


def _copied(value: Any) -> Any:
    """A value that outlives the file's mapping."""
    return value if isinstance(value, str | int | float) else list(value)
