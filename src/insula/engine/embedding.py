"""The engine of models that give hidden states: texts in, vectors or a head's scores out.

Owns the packing of sequences into steps, shortest first and each whole in one step, and how texts
become ids: one or two in a sequence, cut only if the caller says so. Pooling is `ops.pooling`'s.
Refuses requests for text. A sequence's numbers do not depend on what else is in its step.

Shapes: n texts, D dimensions, L labels.
"""

from __future__ import annotations

import operator
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from insula.engine.request import Request, Runner, Tokenizer
from insula.errors import ConfigError, ContextOverflowError, EngineError, UnsupportedError
from insula.ops.graph import Head, Pooling
from insula.ops.pooling import pooled, wanted_rows
from insula.tokenizer import Tokenizer as Vocabulary
from insula.types import EmbeddingReport, Embeddings, HeadScores, HiddenStates

F32 = NDArray[np.float32]

#: Whether nobody waits any more.
Stop = Callable[[], bool]

#: Tokens of one step, unless a single text has more: more bring nothing.
STEP_TOKENS = 1024
#: Most sequences of one step, and what their keys and values may take of memory, in bytes.
STEP_SEQUENCES = 64
STEP_KV_BYTES = 256 << 20


@dataclass(frozen=True, kw_only=True)
class Ids:
    """One sequence as the model reads it. types: None if all are 0. cut: its text was longer."""

    tokens: tuple[int, ...]
    types: tuple[int, ...] | None = None
    cut: bool = False


class EmbeddingEngine:
    """Thread-safe; one step at a time."""

    takes: frozenset[str] = frozenset()

    def __init__(
        self,
        runner: Runner,
        tokenizer: Vocabulary,
        pooling: Pooling | None,
        *,
        n_ctx: int,
        n_out: int,
        weights: Mapping[str, F32],
        reason: str = "",
        notes: Sequence[str] = (),
    ) -> None:
        """n_ctx: most tokens of one text. n_out: D of the hidden states. weights: the head's."""
        self.runner = runner
        self.tokenizer: Tokenizer = tokenizer
        self._vocabulary = tokenizer
        self.pooling = pooling
        self.n_ctx = n_ctx
        self.n_out = n_out
        self.n_vocab = runner.n_vocab
        self.name, self.reason = runner.engine, reason
        self.isa, self.threads = runner.isa, runner.threads
        self._weights = weights
        self._notes = tuple(notes)
        self._lock = threading.Lock()
        self._closed = False

    def submit(self, request: Request) -> NoReturn:
        """Raises UnsupportedError: there are no logits to choose tokens from."""
        raise UnsupportedError(
            "this model gives vectors or scores and no text: use embed, rerank or classify",
            backend=self.name,
        )

    def close(self) -> None:
        """Free weights and pages. Twice is harmless."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self.runner.close()

    # -- texts to ids -------------------------------------------------------------------------

    def ids(self, text: str, *, truncate: bool) -> Ids:
        """One text between the tokens that the vocabulary puts around it.

        Raises ConfigError for an empty text, ContextOverflowError for one that is too long,
        unless it may be cut: then the token that ends a text stays.
        """
        ids = self._vocabulary.encode(_checked(text))
        over = len(ids) - self.n_ctx
        if over <= 0:
            return Ids(tokens=tuple(ids))
        if not truncate:
            raise _too_long(len(ids), self.n_ctx)
        kept = ids[: self.n_ctx]
        if self._vocabulary.add_eos:
            kept[-1] = ids[-1]
        return Ids(tokens=tuple(kept), cut=True)

    def given(self, ids: Sequence[int]) -> Ids:
        """Ids as they are. Raises ConfigError, ContextOverflowError."""
        try:
            if isinstance(ids, bytes | bytearray) or any(isinstance(i, bool) for i in ids):
                raise TypeError
            tokens = tuple(operator.index(i) for i in ids)
        except TypeError:
            raise ConfigError(
                f"a text: found {type(ids).__name__}; allowed is a str, or a list of token ids"
            ) from None
        if not tokens or min(tokens) < 0 or max(tokens) >= self.n_vocab:
            raise ConfigError(
                f"token ids {tokens[:8]}: allowed is one at least, of 0 to {self.n_vocab - 1}"
            )
        if len(tokens) > self.n_ctx:
            raise _too_long(len(tokens), self.n_ctx)
        return Ids(tokens=tokens)

    def pair(self, first: str, second: str, *, truncate: bool) -> Ids:
        """Two texts as the model's kind joins them; only the second is ever cut.

        BERT: [CLS] first [SEP] second [SEP], the second of type 1. RoBERTa: <s> first </s> </s>
        second </s>, all of one type.
        """
        tokenizer = self._vocabulary
        bert = tokenizer.model == "wordpiece"
        end = tokenizer.sep_id if bert else tokenizer.eos_id
        start = tokenizer.encode(_checked(first))
        if end is None or not start or start[-1] != end:
            raise UnsupportedError(
                "this model's vocabulary has no token that ends a text; a pair of texts needs one",
                backend=self.name,
            )
        if not bert:
            start.append(end)
        rest = tokenizer.encode(_checked(second), add_special=False)
        room = self.n_ctx - len(start) - 1
        cut = len(rest) > room
        if cut and (not truncate or room < 1):
            raise _too_long(len(start) + len(rest) + 1, self.n_ctx)
        tokens = (*start, *rest[: max(room, 0)], end)
        types = (0,) * len(start) + (1,) * (len(tokens) - len(start)) if bert else None
        return Ids(tokens=tokens, types=types, cut=cut)

    # -- ids to vectors -----------------------------------------------------------------------

    def run(self, sequences: Sequence[Ids], stop: Stop | None = None) -> F32:
        """Vectors [n, D], or a head's scores [n, L]. stop is asked before each step.

        Raises EngineError if it says so, and where one of them is no number.
        """
        pooling = self.need_pooling()
        width = self.n_out if pooling.head is None else len(self._weights[pooling.head.out])
        out = np.empty((len(sequences), width), dtype=np.float32)
        for batch in self._batches(sequences):
            _go_on(stop)
            chosen = [sequences[i] for i in batch]
            wanted = [wanted_rows(pooling, len(s.tokens)) for s in chosen]
            hidden = self._step(chosen, wanted)
            at = 0
            for i, rows in zip(batch, wanted, strict=True):
                out[i] = pooled(pooling, hidden[at : at + len(rows)], self._weights.__getitem__)
                at += len(rows)
            if not np.isfinite(out[batch]).all():
                raise EngineError(
                    "the model's vectors hold a NaN or an infinity; the model file or its numerics "
                    "are broken"
                )
        return out

    def states(self, sequences: Sequence[Ids]) -> list[F32]:
        """Hidden states [T, D] of each sequence's tokens, before any pooling or head."""
        out: list[F32] = [np.empty((0, self.n_out), dtype=np.float32)] * len(sequences)
        for batch in self._batches(sequences):
            chosen = [sequences[i] for i in batch]
            hidden = self._step(chosen, [range(len(s.tokens)) for s in chosen])
            at = 0
            for i in batch:
                n = len(sequences[i].tokens)
                out[i] = hidden[at : at + n].copy()
                at += n
        return out

    def need_pooling(self) -> Pooling:
        """The pooling that the file states. Raises UnsupportedError if it states none."""
        if self.pooling is None:
            raise UnsupportedError(
                "the model's file does not say how hidden states become a vector (pooling_type); "
                "convert it from a folder that says so (modules.json)",
                backend=self.name,
            )
        return self.pooling

    def need_head(self) -> Head:
        """The head that scores texts. Raises UnsupportedError if the model has none."""
        head = self.need_pooling().head
        if head is None:
            raise UnsupportedError(
                "this model has no head that scores texts: it gives embeddings (embed)",
                backend=self.name,
            )
        return head

    def report(self, sequences: Sequence[Ids], seconds: float) -> EmbeddingReport:
        """What happened to these."""
        return EmbeddingReport(
            engine=self.name,
            engine_reason=self.reason,
            isa=self.isa,
            threads=self.threads,
            tokens=sum(len(s.tokens) for s in sequences),
            seconds=seconds,
            truncated=tuple(i for i, s in enumerate(sequences) if s.cut),
            notes=self._notes,
        )

    def _batches(self, sequences: Sequence[Ids]) -> Iterator[list[int]]:
        """Indices of the sequences of each step, shortest first: few steps, evenly filled."""
        size = self.runner.page_size
        batch: list[int] = []
        tokens = pages = 0
        for i in sorted(range(len(sequences)), key=lambda i: len(sequences[i].tokens)):
            n = len(sequences[i].tokens)
            needed = -(-n // size)
            if batch and (tokens + n > STEP_TOKENS or pages + needed > self.runner.n_pages):
                yield batch
                batch, tokens, pages = [], 0, 0
            batch.append(i)
            tokens, pages = tokens + n, pages + needed
        if batch:
            yield batch

    def _step(self, sequences: Sequence[Ids], wanted: Sequence[range]) -> F32:
        """The wanted rows of the sequences' hidden states, one after the other."""
        lengths = [len(s.tokens) for s in sequences]
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        needed = [-(-n // self.runner.page_size) for n in lengths]
        pages = np.concatenate([[0], np.cumsum(needed)])
        types = None
        if any(s.types is not None for s in sequences):
            types = _ints([t for s in sequences for t in s.types or (0,) * len(s.tokens)])
        with self._lock:
            if self._closed:
                raise EngineError("the engine is closed; open the model again")
            return self.runner.step(
                _ints([t for s in sequences for t in s.tokens]),
                np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]),
                np.repeat(np.arange(len(lengths), dtype=np.int32), lengths),
                [np.arange(pages[i], pages[i + 1], dtype=np.int32) for i in range(len(lengths))],
                np.concatenate(
                    [
                        np.asarray(rows, dtype=np.int32) + np.int32(start)
                        for start, rows in zip(starts, wanted, strict=True)
                    ]
                ),
                types=types,
            )


def embed(
    engine: EmbeddingEngine,
    texts: Sequence[str] | Sequence[Sequence[int]],
    *,
    truncate: bool = False,
    dimensions: int | None = None,
    stop: Stop | None = None,
) -> Embeddings:
    """Vectors of texts, or of ids as they are; dimensions: the first so many, normalized again if
    the model's are. stop: raises EngineError before the next step where it says so."""
    pooling = engine.need_pooling()
    if pooling.head is not None:
        raise UnsupportedError(
            "this model scores texts and gives no embeddings: use rerank or classify",
            backend=engine.name,
        )
    whole = isinstance(dimensions, int) and not isinstance(dimensions, bool)
    if dimensions is not None and not (whole and 1 <= dimensions <= engine.n_out):
        raise ConfigError(f"dimensions: found {dimensions!r}; allowed: 1 to {engine.n_out}")
    began = time.perf_counter()
    sequences = [
        engine.ids(text, truncate=truncate) if isinstance(text, str) else engine.given(text)
        for text in _while(texts, stop)
    ]
    vectors = engine.run(sequences, stop)
    if dimensions is not None and dimensions < engine.n_out:
        vectors = np.ascontiguousarray(vectors[:, :dimensions])
        if pooling.normalize:
            lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
            vectors /= np.maximum(lengths, np.float32(1e-12))[:, None]
    return Embeddings(vectors=vectors, report=engine.report(sequences, time.perf_counter() - began))


def hidden_states(
    engine: EmbeddingEngine, texts: Sequence[str], *, truncate: bool = False
) -> HiddenStates:
    """States of each text's tokens, before any pooling or head."""
    began = time.perf_counter()
    sequences = [engine.ids(text, truncate=truncate) for text in texts]
    states = tuple(engine.states(sequences))
    return HiddenStates(states=states, report=engine.report(sequences, time.perf_counter() - began))


def rerank(
    engine: EmbeddingEngine,
    query: str,
    documents: Sequence[str],
    *,
    truncate: bool = False,
    stop: Stop | None = None,
) -> list[tuple[int, float]]:
    """The documents by how well they answer the query, the best first; equals by their index."""
    head = engine.need_head()
    pairs = [
        engine.pair(query, document, truncate=truncate) for document in _while(documents, stop)
    ]
    scores = engine.run(pairs, stop)
    if scores.shape[1] != 1:
        raise UnsupportedError(
            f"this model gives {scores.shape[1]} scores ({', '.join(head.labels) or 'no names'}) "
            "where a reranker gives one: use classify",
            backend=engine.name,
        )
    order = np.argsort(-scores[:, 0], kind="stable")
    return [(int(i), float(scores[i, 0])) for i in order]


def classify(
    engine: EmbeddingEngine,
    texts: Sequence[str],
    *,
    truncate: bool = False,
    stop: Stop | None = None,
) -> list[dict[str, float]]:
    """For each text the probability of each label, the likeliest first: softmax of the head's
    scores, or of a single score its logistic function."""
    told = head_scores(engine, texts, truncate=truncate, stop=stop)
    found = []
    for row in told.scores.astype(np.float64):
        if len(row) == 1:
            p = 1 / (1 + np.exp(-row))
        else:
            p = np.exp(row - row.max())
            p /= p.sum()
        order = np.argsort(-p, kind="stable")
        found.append({told.labels[i]: float(p[i]) for i in order})
    return found


def head_scores(
    engine: EmbeddingEngine,
    texts: Sequence[str | tuple[str, str]],
    *,
    truncate: bool = False,
    stop: Stop | None = None,
) -> HeadScores:
    """What the head says of texts, or of pairs of texts."""
    head = engine.need_head()
    began = time.perf_counter()
    sequences = [
        engine.ids(text, truncate=truncate)
        if isinstance(text, str)
        else engine.pair(*text, truncate=truncate)
        for text in _while(texts, stop)
    ]
    scores = engine.run(sequences, stop)
    return HeadScores(
        labels=head.labels or tuple(f"LABEL_{i}" for i in range(scores.shape[1])),
        scores=scores,
        report=engine.report(sequences, time.perf_counter() - began),
    )


def _while(items: Sequence[Any], stop: Stop | None) -> Iterator[Any]:
    for item in items:
        _go_on(stop)
        yield item


def _go_on(stop: Stop | None) -> None:
    if stop is not None and stop():
        raise EngineError("the request was cancelled")


def _checked(text: object) -> str:
    if not isinstance(text, str):
        raise ConfigError(f"text: found {type(text).__name__}; allowed is a str")
    if not text.strip():
        raise ConfigError("a text is empty; there is nothing to embed")
    return text


def _too_long(found: int, most: int) -> ContextOverflowError:
    return ContextOverflowError(found, most, "split the text, or let it be cut (truncate=True)")


def _ints(values: Sequence[int]) -> NDArray[np.int32]:
    return np.array(values, dtype=np.int32)
