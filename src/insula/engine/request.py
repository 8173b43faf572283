"""What the engine is asked, and the face that every engine shows.

Owns `Request` (ids, sampling, limits, cache salt) and the protocols `Tokenizer`, `Runner` and
`TextEngine`. The front door (`insula.llm`) speaks to a `TextEngine` and to nothing below it: the
native and the reference engine are `engine.Engine` over a `Runner`; a backend that brings its
own scheduler (llama.cpp) implements `TextEngine` itself.

A request's tokens depend on the request alone: not on what else runs, on cache hits or slicing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from insula.errors import ConfigError
from insula.types import Chunk, Completion, Constraint, Message, SamplingParams

#: Called as (start, logits_TV), float32 [T, n_vocab].
LogitsCallback = Callable[[int, NDArray[np.float32]], None]


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Messages as they are, for an engine that has the template itself.

    arguments: for the template. Messages may have parts that are not text (`chat.media`).
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt and how to go on from it.

    ids: the prompt, at least one token.
    text, conversation: one of them in place of ids, for an engine that takes it
        (`TextEngine.takes`).
    params: with max_tokens None, generation goes on until the model or the context ends it;
        with max_tokens 0 the prompt is evaluated and nothing is generated.
    n_ctx: a limit below the engine's own, in tokens of prompt and completion together.
    salt: requests share cached prefixes only with requests of the same salt.
    constraint: what the answer must look like; None: whatever the model says.
    adapter: the name of a loaded low-rank adapter to go through; None: the model's own if it has
        one, else none.
    use_cache: False neither reads the prefix cache nor leaves anything in it.
    on_prompt_logits: called as (start, logits_TV) with the raw float32 logits of prompt
        positions start, start + 1, ..., each position exactly once and in order. The array is
        only valid during the call.
    prompt_logits_from: the first position whose logits are wanted; only what lies before it is
        read from the prefix cache.
    continues: the completion goes on the prompt's text, so a space before its first word is part
        of it; in a chat the answer is a text of its own.
    skip_special: control tokens show no text.
    notes: lines for the report (what was chosen or dropped before the engine was asked).
    """

    ids: tuple[int, ...] = ()
    text: str | None = None
    conversation: Conversation | None = None
    params: SamplingParams = field(default_factory=SamplingParams)
    constraint: Constraint | None = None
    n_ctx: int | None = None
    salt: str = ""
    adapter: str | None = None
    use_cache: bool = True
    on_prompt_logits: LogitsCallback | None = None
    prompt_logits_from: int = 0
    continues: bool = True
    skip_special: bool = True
    notes: tuple[str, ...] = ()
    dropped_turns: int = 0
    dropped_tokens: int = 0

    def __post_init__(self) -> None:
        """Raises ConfigError: another type would share or keep a prefix by accident."""
        if not isinstance(self.salt, str):
            raise ConfigError(f"salt: found {type(self.salt).__name__}; allowed is a str")
        if not isinstance(self.use_cache, bool):
            raise ConfigError(f"use_cache: found {self.use_cache!r}; allowed: True or False")


class Detokenizer(Protocol):
    """Turns ids into text as they come, never ending in half a character."""

    def push(self, token_id: int, /) -> str: ...
    def flush(self) -> str: ...


class Tokenizer(Protocol):
    """What engine and front door need of a tokenizer; `insula.tokenizer.Tokenizer` has it."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def bos_id(self) -> int | None: ...
    @property
    def eos_id(self) -> int | None: ...
    @property
    def eog_ids(self) -> frozenset[int]: ...
    @property
    def add_bos(self) -> bool: ...
    @property
    def chat_template(self) -> str | None: ...
    def encode(
        self, text: str, *, add_special: bool = True, parse_special: bool = False
    ) -> list[int]: ...
    def decode(self, ids: Any, *, skip_special: bool = False) -> str: ...
    def token_bytes(self, token_id: int, /) -> bytes: ...
    def is_special(self, token_id: int, /) -> bool: ...
    def detokenizer(
        self, *, skip_special: bool = False, continues: bool = False
    ) -> Detokenizer: ...


class Runner(Protocol):
    """Runs a graph over pages of KV cache, one batch per call (see `ops.reference`).

    step: rows_T says which table (sequence) a token belongs to; tokens of one sequence are
    consecutive and ascend in position; tables[s][p // page_size] is the page of position p;
    returns logits float32 [len(logit_rows), n_vocab] for those indices into T alone, or hidden
    states where the graph ends with them. types: of each token, for models that know any.
    """

    page_size: int
    n_pages: int
    n_vocab: int
    engine: str
    isa: str
    threads: int

    def step(
        self,
        tokens: NDArray[np.int32],
        positions: NDArray[np.int32],
        rows: NDArray[np.int32],
        tables: list[NDArray[np.int32]],
        logit_rows: NDArray[np.int32],
        adapters: NDArray[np.int32] | None = None,
        types: NDArray[np.int32] | None = None,
    ) -> NDArray[np.float32]: ...
    def copy_page(self, src: int, dst: int) -> None: ...
    def close(self) -> None: ...


class PageRunner(Runner, Protocol):
    """A runner whose pages may leave memory and come back, bit for bit.

    save_page: copies a page to out, uint8 [page_bytes], with nothing of what lies behind its first
    `tokens` positions, and returns the bytes' checksum.
    load_pages: fills pages with what lies at `offset` of files (descriptors); returns each one's
    checksum, or None for a file that ends too soon or cannot be read.
    """

    @property
    def page_bytes(self) -> int: ...
    def save_page(self, page: int, tokens: int, out: NDArray[np.uint8]) -> int: ...
    def load_pages(
        self, pages: Sequence[int], files: Sequence[int], offset: int
    ) -> list[int | None]: ...


class Handle(Protocol):
    """A submitted request. Iterating yields chunks as they come; the last one carries the
    finish_reason and the whole Completion. Dropping the handle cancels the request."""

    def __iter__(self) -> Iterator[Chunk]: ...
    def result(self) -> Completion:
        """Wait for the end. Raises the engine's error if the request failed."""
        ...

    def cancel(self) -> None:
        """End the request now; its pages are free within a step. Safe from any thread, from a
        finalizer, and twice."""
        ...


class TextEngine(Protocol):
    """Ids in, chunks out. `reason` says why this engine runs the model and not another.

    takes: what a request may hold beside ids: "text", "conversation" (as the only way to ask for an
    answer), "media" (a conversation with images or sound). n_ctx, n_vocab: 0 where unknown.
    """

    name: str
    reason: str
    isa: str
    threads: int
    n_ctx: int
    n_vocab: int

    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def takes(self) -> frozenset[str]: ...

    def submit(self, request: Request) -> Handle:
        """Check and queue. Raises ConfigError, ContextOverflowError or UnsupportedError."""
        ...

    def close(self) -> None: ...
