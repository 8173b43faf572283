"""Plain data that every room shares. No behaviour, no imports from other rooms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FinishReason = Literal["stop", "length", "cancelled", "tool_calls"]

#: How a constraint is written; see `Constraint`.
ConstraintKind = Literal["json_schema", "json_object", "regex", "lark", "gbnf", "llguidance"]

#: The order in which samplers act unless a request sets its own (llama.cpp's default order).
DEFAULT_SAMPLERS: tuple[str, ...] = (
    "penalties",
    "dry",
    "top_n_sigma",
    "top_k",
    "typical_p",
    "top_p",
    "min_p",
    "xtc",
    "temperature",
)


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen. Defaults are llama.cpp's, except repeat_penalty off.

    temperature 0 means greedy (the highest logit after bias and penalties; ties: lowest id).
    top_k <= 0, top_p >= 1, min_p <= 0, typical_p >= 1 and penalties at 1 / 0 / 0 are off.
    repeat_last_n: how many last tokens the penalties see; 0 none, -1 the whole context.
    dry_multiplier 0, top_n_sigma <= 0, xtc_probability 0, dynatemp_range 0 and mirostat 0 are off.
    dry_penalty_last_n: how many last tokens DRY sees; 0 none, -1 the whole context.
    mirostat: 0 or 2; 2 acts in place of top_n_sigma, top_k, typical_p, top_p, min_p and xtc.
    seed: None draws one; the report carries the seed that was used.
    logprobs: None, or how many alternatives per token (0: the chosen token alone).
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_last_n: int = 64
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: Sequence[str] = ("\n", ":", '"', "*")
    top_n_sigma: float = -1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    samplers: tuple[str, ...] = DEFAULT_SAMPLERS
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    ignore_eos: bool = False
    logprobs: int | None = None


@dataclass(frozen=True, kw_only=True)
class Constraint:
    """What an answer must look like, whatever the model would rather say.

    json_schema: text is a JSON schema. json_object: any JSON object; no text. regex: the whole
    answer matches. lark: a grammar in llguidance's Lark, whose start is `start`. gbnf: a grammar in
    llama.cpp's notation, whose start is `root`. llguidance: several grammars in its JSON form.
    """

    kind: ConstraintKind
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class ToolCall:
    """A call of a tool that the model asks for. arguments: JSON, an object as its schema has it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, kw_only=True)
class TokenLogprob:
    """One generated token: natural-log probability from the raw (unmodified) distribution.

    token_id: -1 from a remote server, which names tokens by their text alone.
    """

    token_id: int
    token: bytes
    logprob: float
    top: tuple[tuple[int, bytes, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Report:
    """What happened to one request. Nothing is silent.

    cached_from_disk: how many of the cached tokens were read from disk for this request.
    queue_seconds: from submission to the first step that ran a token of it; 0 where a backend with
    a scheduler of its own does not say. It is part of time_to_first_token.
    draft_proposed, draft_accepted: tokens that speculation guessed, and those that held.
    """

    engine: str
    engine_reason: str
    isa: str
    threads: int
    seed: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    time_to_first_token: float
    prompt_tokens_per_second: float
    decode_tokens_per_second: float
    dropped_turns: int = 0
    dropped_tokens: int = 0
    cached_from_disk: int = 0
    draft_proposed: int = 0
    draft_accepted: int = 0
    queue_seconds: float = 0.0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Completion:
    """The answer to one request.

    token_ids: every token generated but the one that ended it; with a stop string, text ends
    before it and token_ids after. reasoning: what a chat model thought before its answer, None
    where it marked none; it is not part of text. tool_calls: what the model asks to be called,
    which is not part of text either; with finish_reason "tool_calls" it waits for their results.
    prompt_logprobs: of the prompt's tokens where they were asked for, None for the first, which
    follows nothing.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] | None
    report: Report
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """One piece of a stream. The last one carries finish_reason and the whole Completion.

    reasoning: what a chat model thinks before its answer; it is not part of text.
    queue_seconds: on the chunk of the first token, how long the request had waited for its turn.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: FinishReason | None = None
    completion: Completion | None = None
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    queue_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Activity:
    """What an engine is doing at this moment: requests, and pages of KV cache.

    pages_cached: held by nobody, kept for their prefixes; they are free for whoever needs them.
    """

    running: int
    waiting: int
    pages: int
    pages_in_use: int
    pages_cached: int


@dataclass(frozen=True, kw_only=True)
class EmbeddingReport:
    """What happened to the texts of one call. Nothing is silent.

    tokens: of all texts, as far as they were read. truncated: indices of texts that were cut.
    """

    engine: str
    engine_reason: str
    isa: str
    threads: int
    tokens: int
    seconds: float
    truncated: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """vectors: float32 [n, D], one row per text, in the order of the texts."""

    vectors: NDArray[np.float32]
    report: EmbeddingReport


@dataclass(frozen=True, kw_only=True)
class HeadScores:
    """scores: a head's raw ones, float32 [n, L], one row per text; labels: of its L columns."""

    labels: tuple[str, ...]
    scores: NDArray[np.float32]
    report: EmbeddingReport


@dataclass(frozen=True, kw_only=True)
class HiddenStates:
    """states: float32 [T, D] of each text's T tokens, those around it included."""

    states: tuple[NDArray[np.float32], ...]
    report: EmbeddingReport


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What was loaded and how it runs. Sizes in bytes, contexts in tokens; 0 and "unknown" for
    what a remote server does not say.

    speculation: off, ngram, or the draft model's name. adapters: the names of those loaded.
    """

    name: str
    path: str
    arch: str
    quantization: str
    parameters: int
    file_bytes: int
    n_vocab: int
    n_layers: int
    n_embd: int
    n_ctx_train: int
    n_ctx: int
    kv_bytes: int
    kv_type: str
    engine: str
    engine_reason: str
    isa: str
    threads: int
    has_chat_template: bool
    speculation: str = "off"
    adapters: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


#: A chat message as OpenAI writes it: role, content, and for tools their own keys.
Message = Mapping[str, Any]
